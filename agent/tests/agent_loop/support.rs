//! One agent at a time, and waiting for what it says.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rekindle::agent::control::{Answer, Request, ask};
use rekindle::agent::revisions::Revisions;
use rekindle::agent::status::Status;
use rekindle::config::{Paths, ReimageSettings, Settings};
use rekindle::host::exec::{Command, run};
use rekindle::policy::candidate::from_directory;
use rekindle::policy::trust::{Trust, store, verify};
use rekindle::record::{HistoryEntry, HistoryFilter, Record};
use rekindle::spool::{Outgoing, OutgoingBody, Spool};
use tempfile::TempDir;

/// Longer than any busy machine needs; reached only by a test that fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// An agent is stopped by a signal to this very process, so there is one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A host, before its agent runs.
pub(crate) struct Host {
    dir: TempDir,
    /// Where something is mounted beneath the directory, in the order of mounting.
    mounts: Vec<PathBuf>,
    pub(crate) settings: Settings,
    _turn: MutexGuard<'static, ()>,
}

/// A host with its agent.
pub(crate) struct Running {
    host: Option<Host>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// The content that the policies here declare.
pub(crate) const GOOD: &str = "good\n";

impl Host {
    pub(crate) fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let paths = Paths {
            root: at("root"),
            state: at("state"),
            runtime: at("run"),
            program: env!("CARGO_BIN_EXE_rekindle").into(),
        };
        for path in [&paths.root, &paths.runtime, &paths.outbox(), &paths.inbox(), &paths.courier()] {
            std::fs::create_dir_all(path).unwrap();
        }
        Self { dir, mounts: Vec::new(), settings: Settings { paths, ..Settings::default() }, _turn: turn }
    }

    /// Somebody who may be asked.
    pub(crate) fn with_endpoint(mut self) -> Self {
        self.settings.reimage = Some(ReimageSettings {
            endpoint: "https://hub.example".into(),
            ca: None,
            join_token_file: None,
            token_file: None,
            host_id: None,
            checkin: Duration::from_secs(300),
            drain: Vec::new(),
            drain_timeout: Duration::from_secs(10),
            local_command: Vec::new(),
        });
        self
    }

    /// Mounts something at a path of the managed host.
    #[track_caller]
    pub(crate) fn mount(&mut self, options: &[&str], what: &Path, path: &str) -> PathBuf {
        let at = self.at(path);
        std::fs::create_dir_all(&at).unwrap();
        let mut args: Vec<&str> = options.to_vec();
        args.extend([what.to_str().unwrap(), at.to_str().unwrap()]);
        tool("mount", &args);
        self.mounts.push(at.clone());
        at
    }

    /// Mounts something where the agent keeps its state.
    #[track_caller]
    pub(crate) fn mount_state(&mut self, options: &[&str], what: &Path) {
        let Settings { paths, .. } = &self.settings;
        tool("mount", &[options, &[what.to_str().unwrap(), paths.state.to_str().unwrap()]].concat());
        self.mounts.push(paths.state.clone());
        for path in [&paths.outbox(), &paths.inbox(), &paths.courier()] {
            std::fs::create_dir_all(path).unwrap();
        }
    }

    /// Where a path of the managed host is.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.settings.paths.root.join(path.trim_start_matches('/'))
    }

    /// Starts the agent with a policy that declares these files, and waits until it has looked at everything.
    pub(crate) fn guard(self, files: &[&str]) -> Running {
        let mut text = String::new();
        for file in files {
            text.push_str(&format!("[file.\"{file}\"]\ncontent = {GOOD:?}\n"));
            std::fs::create_dir_all(self.at(file).parent().unwrap()).unwrap();
        }
        self.run(&text)
    }

    /// Starts the agent with a policy, and waits until it has looked at everything.
    pub(crate) fn run(self, policy: &str) -> Running {
        let text = format!("[policy]\nname = \"test\"\n{policy}");
        let policy = self.dir.path().join("policy");
        std::fs::create_dir(&policy).unwrap();
        write(&policy.join("policy.toml"), &text);
        let verified = verify(from_directory(&policy).unwrap(), &Trust::Operator, jiff::Timestamp::UNIX_EPOCH).unwrap();
        store(&verified, &self.settings.paths.policies()).unwrap();
        let revisions = Revisions { in_force: Some(verified.revision().clone()), ..Revisions::default() };
        Record::open(&self.settings.paths.state).unwrap().record.save("revisions", &revisions).unwrap();
        let running = self.start();
        running.wait("it to converge", |status| status.health.state == "converged");
        running
    }

    /// Starts the agent with whatever is there.
    pub(crate) fn start(self) -> Running {
        let settings = self.settings.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(rekindle::agent::run(settings, None))
        });
        Running { host: Some(self), thread: Some(thread) }
    }

    /// A directory beside the host's own.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the configuration that the program itself reads.
    pub(crate) fn configure(&self) -> PathBuf {
        let Paths { root, state, runtime, .. } = &self.settings.paths;
        let config = self.beside("agent.toml");
        let policy = match &self.settings.policy {
            Some(policy) => format!("[policy]\nurl = {:?}\ntrust = \"none\"\n", policy.url),
            None => String::new(),
        };
        write(&config, &format!("{policy}[paths]\nroot = {root:?}\nstate = {state:?}\nruntime = {runtime:?}\n"));
        config
    }

    /// Runs the program itself on this host: its exit code, what it prints, and what it complains about.
    pub(crate) fn cli(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let config = self.configure();
        let args: Vec<&str> = ["--config", config.to_str().unwrap()].iter().chain(args).copied().collect();
        let mut command = command(env!("CARGO_BIN_EXE_rekindle"), &args);
        command.env = vec![("SUDO_USER".into(), "ada".into())];
        let output = run(&command).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.code, text(output.stdout), text(output.stderr))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for path in self.mounts.iter().rev() {
            let unmounted = run(&command("umount", &[path.to_str().unwrap()]));
            if !unmounted.is_ok_and(|output| output.code == Some(0)) {
                // What is mounted there is not the test's to remove.
                self.dir.disable_cleanup(true);
                eprintln!("`{}` is still mounted", path.display());
            }
        }
    }
}

impl Running {
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.host().at(path)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.host().settings
    }

    pub(crate) fn host(&self) -> &Host {
        self.host.as_ref().unwrap()
    }

    /// Stops the agent as systemd does, and hands back its host.
    pub(crate) fn stop(mut self) -> Host {
        let thread = self.thread.take().unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        thread.join().unwrap().unwrap();
        self.host.take().unwrap()
    }

    /// Waits until the agent has ended by itself, as it should, and hands back its host.
    pub(crate) fn ended(mut self) -> Host {
        let deadline = Instant::now() + DEADLINE;
        let thread = self.thread.take().unwrap();
        while !thread.is_finished() {
            assert!(Instant::now() < deadline, "the agent goes on");
            pause(Duration::from_millis(5));
        }
        thread.join().unwrap().unwrap();
        self.host.take().unwrap()
    }

    /// Runs the program itself, which must succeed, and returns what it prints.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let (code, out, complaint) = self.host().cli(args);
        assert_eq!(code, Some(0), "{args:?}: {out}{complaint}");
        out
    }

    /// Runs the program itself, which must refuse with this exit code, and returns its complaint.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, args: &[&str]) -> String {
        let (found, out, complaint) = self.host().cli(args);
        assert_eq!(found, Some(code), "{args:?}: {out}{complaint}");
        complaint
    }

    /// The alerts that wait for the courier, in order.
    pub(crate) fn alerts(&self) -> Vec<rekindle::spool::Alert> {
        let alerts = self.outbox().into_iter().filter_map(|message| match message {
            OutgoingBody::Alert(alert) => Some(alert),
            OutgoingBody::Reimage(_) => None,
        });
        alerts.collect()
    }

    /// The status now; `None` while the agent does not answer yet.
    fn status(&self) -> Option<Status> {
        assert!(!self.thread.as_ref().unwrap().is_finished(), "the agent has ended");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        match runtime.block_on(ask(&self.host().settings.paths.control(), &Request::Status)) {
            Ok(Answer::Status(status)) => Some(*status),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    }

    /// Has everything looked at.
    pub(crate) fn look(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(ask(&self.host().settings.paths.control(), &Request::Look)).unwrap();
        assert_eq!(answer, Answer::Done);
    }

    /// Waits until a status satisfies `enough`, and returns it.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut enough: impl FnMut(&Status) -> bool) -> Status {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = self.status();
            if let Some(status) = &status
                && enough(status)
            {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}: {status:#?}");
            pause(Duration::from_millis(5));
        }
    }

    /// Waits until a file satisfies `enough`.
    #[track_caller]
    pub(crate) fn wait_for_file(&self, path: &Path, enough: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if enough(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "waited in vain for `{}`: {text}", path.display());
            pause(Duration::from_millis(5));
        }
    }

    /// What waits for the courier, in order.
    pub(crate) fn outbox(&self) -> Vec<OutgoingBody> {
        let outbox = Spool::open(&self.host().settings.paths.outbox()).unwrap();
        let read = |id: &String| outbox.read(id).unwrap().map(|Outgoing { body, .. }| body);
        outbox.list().unwrap().iter().filter_map(read).collect()
    }

    /// The history, oldest first.
    pub(crate) fn history(&self) -> Vec<HistoryEntry> {
        let record = Record::open_read_only(&self.host().settings.paths.state).unwrap();
        let mut entries = record.history(&HistoryFilter { limit: 10_000, ..HistoryFilter::default() }).unwrap();
        entries.reverse();
        entries
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // An agent that answers has its handlers in place.
        if !thread.is_finished() {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        }
        let ended = thread.join();
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

fn command(program: &str, args: &[&str]) -> Command {
    Command { deadline: DEADLINE, ..Command::new(program).args(args.iter().copied()) }
}

/// Runs a tool that must succeed, and returns what it prints.
#[track_caller]
pub(crate) fn tool(program: &str, args: &[&str]) -> String {
    let output = run(&command(program, args)).unwrap();
    assert_eq!(output.code, Some(0), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The pace of somebody who does something again and again; no result depends on how long it really is.
pub(crate) fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

/// A foreign writer, who truncates.
#[expect(clippy::disallowed_methods, reason = "a test plays the foreign writer, who does truncate")]
pub(crate) fn write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
}
