//! The listener to systemd's signals, against a bus of its own on which the test plays systemd.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use futures_util::StreamExt;
use rekindle::resource::{ResourceId, UnitName};
use rekindle::watch::units::{Bus, service, unit_signals};
use rekindle::watch::{Hint, How};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use zbus::connection::Builder;
use zbus::{Connection, DynamicType, MessageStream, OwnedObjectPath, Variant};

const DEADLINE: Duration = Duration::from_secs(20);

/// A bus daemon that dies with the test.
struct Daemon {
    child: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Daemon {
    #[expect(clippy::disallowed_methods, reason = "the test starts the bus that it plays systemd on")]
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address=1"])
            .arg(format!("--address=unix:path={}", dir.path().join("bus").display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is needed: install the package `dbus`");
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned(), _dir: dir }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// As much of systemd as the listener asks for. `alias.service` is another name of `real.service`.
struct Systemd {
    connection: Connection,
    _calls: JoinSet<()>,
}

impl Systemd {
    async fn start(address: &str) -> Self {
        let connection = Builder::address(address).build().await.unwrap();
        let calls = MessageStream::from(&connection);
        connection.request_name("org.freedesktop.systemd1").await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(answer(connection.clone(), calls));
        Self { connection, _calls: tasks }
    }

    async fn signal<B: serde::Serialize + DynamicType>(&self, path: &str, interface: &str, name: &str, body: &B) {
        self.connection.emit_signal(None::<&str>, path, interface, name, body).await.unwrap();
    }

    async fn property(&self, unit: &str, property: &str) {
        let changed: HashMap<&str, Variant<'_>> = [(property, Variant::from("x"))].into();
        let body = ("org.freedesktop.systemd1.Unit", changed, Vec::<&str>::new());
        self.signal(path_of(unit).as_str(), "org.freedesktop.DBus.Properties", "PropertiesChanged", &body).await;
    }

    async fn job(&self, unit: &str) {
        self.signal(PATH, MANAGER, "JobRemoved", &(1_u32, path_of("job"), unit, "done")).await;
    }
}

async fn answer(connection: Connection, mut calls: MessageStream) {
    while let Some(Ok(call)) = calls.next().await {
        let header = call.header();
        match header.member().map(|member| member.as_str()) {
            Some("LoadUnit") => {
                let name: String = call.body().deserialize().unwrap();
                let canonical = if name == "alias.service" { "real.service" } else { &name };
                connection.reply(&header, &path_of(canonical)).await.unwrap();
            }
            Some("Subscribe") => connection.reply(&header, &()).await.unwrap(),
            _ => {}
        }
    }
}

fn path_of(unit: &str) -> OwnedObjectPath {
    let escaped = unit.replace('.', "_2e");
    OwnedObjectPath::try_from(format!("{PATH}/unit/{escaped}")).unwrap()
}

fn unit(name: &str) -> UnitName {
    UnitName::new(name).unwrap()
}

fn look(names: &[&str]) -> Hint {
    Hint::Look(names.iter().map(|name| service(&unit(name))).collect::<BTreeSet<ResourceId>>())
}

struct Scene {
    hints: mpsc::UnboundedReceiver<Hint>,
    coverage: watch::Receiver<How>,
}

impl Scene {
    /// Waits for `expected`. Nothing else may come before it: a signal that hints nothing is tested by what follows it.
    async fn expect(&mut self, expected: Hint) {
        let hint = timeout(DEADLINE, self.hints.recv()).await.expect("no hint came").unwrap();
        assert_eq!(hint, expected);
    }

    async fn expect_coverage(&mut self, is_expected: impl FnMut(&How) -> bool) {
        timeout(DEADLINE, self.coverage.wait_for(is_expected)).await.expect("coverage did not change").unwrap();
    }
}

/// Runs `test` beside the listener, which must end when its units' sender is dropped.
async fn with_listener(address: &str, units: &[&str], test: impl AsyncFnOnce(Scene, &watch::Sender<Vec<UnitName>>)) {
    let (units, declared) = watch::channel(units.iter().copied().map(unit).collect());
    let (coverage_sender, coverage) = watch::channel(How::Blind { why: "not started".into() });
    let (sender, hints) = mpsc::unbounded_channel();
    let listener = unit_signals(Bus::At(address.to_owned()), declared, coverage_sender, move |hint| {
        // The test may have ended before the listener.
        drop(sender.send(hint));
    });
    let scene = Scene { hints, coverage };
    let run = async {
        test(scene, &units).await;
        drop(units);
    };
    tokio::join!(listener, run);
}

#[tokio::test]
async fn signals_hint_the_declared_units_they_concern_and_no_others() {
    let daemon = Daemon::start();
    let systemd = Systemd::start(&daemon.address).await;
    with_listener(&daemon.address, &["ssh.service", "alias.service"], async |mut scene, units| {
        scene.expect(look(&["ssh.service", "alias.service"])).await;
        scene.expect_coverage(|how| *how == How::Watched).await;

        systemd.property("other.service", "ActiveState").await;
        systemd.property("ssh.service", "ExecMainStartTimestamp").await;
        systemd.property("ssh.service", "ActiveState").await;
        scene.expect(look(&["ssh.service"])).await;
        systemd.property("real.service", "UnitFileState").await;
        scene.expect(look(&["alias.service"])).await;

        systemd.job("other.service").await;
        systemd.job("ssh.service").await;
        scene.expect(look(&["ssh.service"])).await;
        systemd.signal(PATH, MANAGER, "UnitFilesChanged", &()).await;
        scene.expect(look(&["ssh.service", "alias.service"])).await;

        systemd.signal(PATH, MANAGER, "Reloading", &true).await;
        systemd.signal(PATH, MANAGER, "Reloading", &false).await;
        scene.expect(look(&["ssh.service", "alias.service"])).await;

        units.send_replace(vec![unit("nginx.service")]);
        scene.expect(look(&["nginx.service"])).await;
        systemd.property("ssh.service", "ActiveState").await;
        systemd.property("nginx.service", "ActiveState").await;
        scene.expect(look(&["nginx.service"])).await;
    })
    .await;
}

#[tokio::test]
async fn a_lost_systemd_means_everything_and_is_found_again() {
    let daemon = Daemon::start();
    let first = Systemd::start(&daemon.address).await;
    with_listener(&daemon.address, &["ssh.service"], async |mut scene, _units| {
        scene.expect(look(&["ssh.service"])).await;
        first.connection.release_name("org.freedesktop.systemd1").await.unwrap();
        scene.expect(Hint::Everything { why: "the connection to systemd was lost" }).await;
        scene.expect_coverage(|how| matches!(how, How::Blind { .. })).await;
        let second = Systemd::start(&daemon.address).await;
        scene.expect(look(&["ssh.service"])).await;
        scene.expect_coverage(|how| *how == How::Watched).await;
        second.property("ssh.service", "ActiveState").await;
        scene.expect(look(&["ssh.service"])).await;
    })
    .await;
}

#[tokio::test]
async fn without_a_bus_coverage_says_so() {
    with_listener("unix:path=/nonexistent/bus", &["ssh.service"], async |mut scene, _units| {
        scene.expect_coverage(|how| matches!(how, How::Blind { why } if why.contains("cannot listen"))).await;
    })
    .await;
}
