//! A real HTTP server on loopback, a courier's directories, and waiting with a deadline.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rekindle::config::{ConvergeSettings, HealthSettings, MetricsSettings, Mode, Paths, Settings, WebhookSettings};
use rekindle::resource::{Kind, ResourceId};
use rekindle::spool::{Alert, AlertResource, Enqueued, Event, Outgoing, OutgoingBody, ReimageCall, Spool};
use tempfile::TempDir;

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Method and path.
    pub(crate) line: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// One answer; `None` closes the connection without one.
pub(crate) type Answer = Option<(u16, Vec<(&'static str, String)>, String)>;

/// An answer with a status and nothing else.
pub(crate) fn status(status: u16) -> Answer {
    Some((status, vec![], String::new()))
}

/// A server that answers as it is told.
pub(crate) struct Server {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts one. `respond` gets the request and how many came before it.
    pub(crate) fn start(respond: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), respond)
    }

    /// Starts one on a listener.
    pub(crate) fn on(
        listener: TcpListener,
        respond: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (requests, respond) = (Arc::clone(&seen), Arc::new(respond));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (requests, respond) = (Arc::clone(&requests), Arc::clone(&respond));
                std::thread::spawn(move || serve(stream, &requests, &*respond));
            }
        });
        Self { url, seen }
    }

    /// Everything that arrived.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, requests: &Mutex<Vec<Request>>, respond: &dyn Fn(&Request, usize) -> Answer) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers: BTreeMap<String, String> =
        lines[1..].iter().map(|l| l.split_once(": ").unwrap()).map(|(k, v)| (k.to_lowercase(), v.to_owned())).collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |n| n.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let line = lines[0].trim_end_matches(" HTTP/1.1").to_owned();
    let request = Request { line, headers, body };
    let n = {
        let mut requests = requests.lock().unwrap();
        requests.push(request.clone());
        requests.len() - 1
    };
    let Some((status, headers, body)) = respond(&request, n) else { return };
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let text = format!(
        "HTTP/1.1 {status} Whatever\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // The courier may have been stopped meanwhile.
    reader.into_inner().write_all(text.as_bytes()).ok();
}

/// A host with nothing but the courier's directories.
pub(crate) struct Host {
    pub(crate) dir: TempDir,
    pub(crate) settings: Settings,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: dir.path().into(),
            state: dir.path().join("state"),
            runtime: dir.path().join("run"),
            ..Paths::default()
        };
        for path in [paths.outbox(), paths.inbox(), paths.courier(), paths.runtime.clone()] {
            std::fs::create_dir_all(path).unwrap();
        }
        let settings = Settings {
            mode: Mode::Enforce,
            age_identity: None,
            roles: vec![],
            policy: None,
            converge: ConvergeSettings::default(),
            health: HealthSettings::default(),
            reimage: None,
            webhooks: vec![],
            metrics: MetricsSettings::default(),
            paths,
        };
        Self { dir, settings }
    }

    pub(crate) fn outbox(&self) -> Spool {
        Spool::open(&self.settings.paths.outbox()).unwrap()
    }

    pub(crate) fn inbox(&self) -> Spool {
        Spool::open(&self.settings.paths.inbox()).unwrap()
    }

    pub(crate) fn webhook(&mut self, url: &str) -> &mut WebhookSettings {
        let webhook = WebhookSettings { url: url.into(), secret_file: None, ca: None, events: vec![] };
        self.settings.webhooks.push(webhook);
        self.settings.webhooks.last_mut().unwrap()
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        #[expect(clippy::disallowed_methods, reason = "nobody reads it yet")]
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn enqueue(&self, body: OutgoingBody) -> String {
        let outbox = self.outbox();
        let id = outbox.next_id(Timestamp::now(), 7).unwrap();
        assert_eq!(outbox.enqueue(&Outgoing { version: 1, id: id.clone(), body }).unwrap(), Enqueued::Stored);
        id
    }

    pub(crate) fn alert(&self, event: Event) -> String {
        let resource = AlertResource {
            resource: ResourceId::new(Kind::File, "/etc/motd"),
            cause: "corrective".into(),
            outcome: "changed".into(),
            error: None,
            changes: vec![],
            history: Some(1),
            who: None,
        };
        self.enqueue(OutgoingBody::Alert(Alert {
            version: 1,
            time: Timestamp::now(),
            host: "web1".into(),
            event,
            revision: None,
            summary: "something happened".into(),
            resources: vec![resource],
        }))
    }

    pub(crate) fn call(&self, call: ReimageCall) -> String {
        self.enqueue(OutgoingBody::Reimage(call))
    }

    /// Runs the courier until `done` says so, then shuts it down properly. A deadline is a failure.
    pub(crate) fn run_until(&self, what: &str, done: impl FnMut() -> bool) {
        self.run(what, done, End::Shutdown);
    }

    /// The same, but the courier is killed in the middle of what it does.
    pub(crate) fn run_and_kill_when(&self, what: &str, done: impl FnMut() -> bool) {
        self.run(what, done, End::Kill);
    }

    fn run(&self, what: &str, mut done: impl FnMut() -> bool, end: End) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let shutdown = async {
                stopped.await.ok();
            };
            let exe = PathBuf::from(env!("CARGO_BIN_EXE_rekindle"));
            let courier = rekindle::courier::run_with(&self.settings, &exe, shutdown);
            let mut stop = Some(stop);
            let deadline = Instant::now() + Duration::from_secs(30);
            let watch = async {
                while !done() {
                    assert!(Instant::now() < deadline, "{what}: not within 30 s");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                match end {
                    End::Kill => {}
                    End::Shutdown => {
                        stop.take().unwrap().send(()).unwrap();
                        std::future::pending::<()>().await;
                    }
                }
            };
            tokio::select! {
                result = courier => result.unwrap(),
                () = watch => {}
            }
        });
    }
}

enum End {
    Shutdown,
    Kill,
}
