//! Hints about services, from the service manager's own signals: they drift without any file changing.
//!
//! This is the one part of the watcher that is asynchronous, because D-Bus is. Signals are hints like any others: after
//! every (re)connection all declared units are hinted once, so that nothing between two connections is missed. Nothing
//! here changes a unit; loading one, to learn its canonical path, is what `systemctl status` does too.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use zbus::connection::Builder;
use zbus::{Connection, MessageStream, OwnedObjectPath, Variant};

use super::{Hint, How, Interest};
use crate::resource::{Kind, ResourceId, UnitName};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// Properties of a unit that a policy can care about.
const PROPERTIES: [&str; 4] = ["ActiveState", "LoadState", "UnitFileState", "NeedDaemonReload"];

/// Longest time to connect and subscribe.
const SETUP: Duration = Duration::from_secs(30);

/// Time to the first attempt to reconnect; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Targets in whose `.wants` directory `systemctl enable` commonly puts a link.
const TARGETS: [&str; 8] = [
    "basic.target",
    "default.target",
    "graphical.target",
    "multi-user.target",
    "network-online.target",
    "sockets.target",
    "sysinit.target",
    "timers.target",
];

/// Where `systemctl enable`, `disable` and `mask` put and remove links.
pub fn directories() -> [&'static Path; 2] {
    [Path::new("/etc/systemd/system"), Path::new("/run/systemd/system")]
}

/// The service resource that a unit belongs to.
pub fn service(unit: &UnitName) -> ResourceId {
    let name = unit.as_str();
    ResourceId::new(Kind::Service, name.strip_suffix(".service").unwrap_or(name))
}

/// Paths whose change may enable, disable, mask or redefine a unit: seen even when no signal is sent, as when somebody
/// removes a link by hand. Links in uncommon places are left to the signals and the full scan.
pub fn interests(unit: &UnitName) -> Vec<Interest> {
    let resource = service(unit);
    let mut paths: Vec<PathBuf> = Vec::new();
    for directory in directories() {
        paths.push(directory.join(unit.as_str()));
        paths.push(directory.join(format!("{unit}.d")));
        paths.extend(TARGETS.iter().map(|target| directory.join(format!("{target}.wants")).join(unit.as_str())));
    }
    paths.push(Path::new("/usr/lib/systemd/system").join(unit.as_str()));
    paths.into_iter().map(|path| Interest { path: path.into(), resource: resource.clone() }).collect()
}

/// Which bus systemd is on.
#[derive(Debug, Clone)]
pub enum Bus {
    /// The system bus.
    System,
    /// A bus at this address.
    At(String),
}

/// Why listening ended.
#[derive(Debug)]
enum Ended {
    /// systemd has read its units again: canonical names may differ now.
    Reloaded,
    /// The connection could not be made, or is gone.
    Lost { why: String, listened: bool },
}

/// Hints services whenever systemd says that something happened to them. Reports in `coverage` whether it is listening.
/// Returns when the sender of `units` is dropped, and never otherwise: without a bus it keeps trying, ever more slowly.
pub async fn unit_signals(
    bus: Bus,
    mut units: watch::Receiver<Vec<UnitName>>,
    coverage: watch::Sender<How>,
    hint: impl Fn(Hint),
) {
    let mut delay = RETRY_FIRST;
    loop {
        let names = units.borrow_and_update().clone();
        if names.is_empty() {
            coverage.send_replace(How::Watched);
            if units.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Some(ended) = unless_changed(&mut units, listen(&bus, &names, &coverage, &hint)).await else { continue };
        let Ok(ended) = ended else { return };
        match ended {
            Ended::Reloaded => delay = RETRY_FIRST,
            Ended::Lost { why, listened } => {
                tracing::warn!(why, "not listening to systemd; services are looked at by the full scan");
                coverage.send_replace(How::Blind { why });
                if listened {
                    hint(Hint::Everything { why: "the connection to systemd was lost" });
                    delay = RETRY_FIRST;
                }
                if let Some(Err(Gone)) = unless_changed(&mut units, tokio::time::sleep(delay)).await {
                    return;
                }
                delay = (delay * 2).min(RETRY_MAX);
            }
        }
    }
}

/// The sender of the units is gone: shut down.
struct Gone;

/// Awaits `work`, unless the declared units change, which is `None`.
async fn unless_changed<T>(
    units: &mut watch::Receiver<Vec<UnitName>>,
    work: impl Future<Output = T>,
) -> Option<Result<T, Gone>> {
    tokio::select! {
        changed = units.changed() => changed.is_err().then_some(Err(Gone)),
        done = work => Some(Ok(done)),
    }
}

async fn listen(bus: &Bus, units: &[UnitName], coverage: &watch::Sender<How>, hint: &impl Fn(Hint)) -> Ended {
    let (mut signals, listener) = match tokio::time::timeout(SETUP, subscribe(bus, units)).await {
        Ok(Ok(subscribed)) => subscribed,
        Ok(Err(error)) => {
            return Ended::Lost { why: format!("cannot listen to systemd: {}", chain(&error)), listened: false };
        }
        Err(_) => return Ended::Lost { why: "cannot listen to systemd: no answer".to_owned(), listened: false },
    };
    coverage.send_replace(How::Watched);
    hint(Hint::Look(listener.all()));
    while let Some(message) = signals.next().await {
        match message {
            Ok(message) => match listener.interpret(&message) {
                Heard::Nothing => {}
                Heard::Units(services) => hint(Hint::Look(services.into_iter().collect())),
                Heard::Reloaded => return Ended::Reloaded,
                Heard::Restarted => {
                    return Ended::Lost { why: "systemd left the bus".to_owned(), listened: true };
                }
            },
            Err(error) => return Ended::Lost { why: chain(&error), listened: true },
        }
    }
    Ended::Lost { why: "the bus closed the connection".to_owned(), listened: true }
}

/// Connects and subscribes. The stream is made last: nothing may be awaited while nobody reads it.
async fn subscribe(bus: &Bus, units: &[UnitName]) -> zbus::Result<(MessageStream, Listener)> {
    let connection = match bus {
        Bus::System => Connection::system().await?,
        Bus::At(address) => Builder::address(address.as_str()).build().await?,
    };
    connection.call_method(Some(SYSTEMD), SYSTEMD_PATH, Some(MANAGER), "Subscribe", &()).await?;
    let from_systemd = format!("type='signal',sender='{SYSTEMD}'");
    let mut rules = vec![
        format!("{from_systemd},path='{SYSTEMD_PATH}',interface='{MANAGER}',member='UnitFilesChanged'"),
        format!("{from_systemd},path='{SYSTEMD_PATH}',interface='{MANAGER}',member='Reloading'"),
        format!(
            "type='signal',sender='{BUS}',path='{BUS_PATH}',interface='{BUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'"
        ),
    ];
    let mut listener = Listener { by_path: HashMap::new(), by_name: HashMap::new() };
    for unit in units {
        let service = service(unit);
        let reply =
            connection.call_method(Some(SYSTEMD), SYSTEMD_PATH, Some(MANAGER), "LoadUnit", &unit.as_str()).await?;
        let path: OwnedObjectPath = reply.body().deserialize()?;
        let path = path.as_str().to_owned();
        rules.push(format!(
            "{from_systemd},path='{path}',interface='{BUS}.Properties',member='PropertiesChanged',arg0='{UNIT}'"
        ));
        rules.push(format!(
            "{from_systemd},path='{SYSTEMD_PATH}',interface='{MANAGER}',member='JobRemoved',arg2='{unit}'"
        ));
        // Two declared names may be one unit.
        listener.by_path.entry(path).or_default().insert(service.clone());
        listener.by_name.insert(unit.as_str().to_owned(), service);
    }
    for rule in rules {
        connection.call_method(Some(BUS), BUS_PATH, Some(BUS), "AddMatch", &rule).await?;
    }
    Ok((MessageStream::from(connection), listener))
}

/// What a message means.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    Units(HashSet<ResourceId>),
    Reloaded,
    Restarted,
}

#[derive(Debug)]
struct Listener {
    by_path: HashMap<String, HashSet<ResourceId>>,
    by_name: HashMap<String, ResourceId>,
}

impl Listener {
    fn all(&self) -> std::collections::BTreeSet<ResourceId> {
        self.by_name.values().cloned().collect()
    }

    fn interpret(&self, message: &zbus::Message) -> Heard {
        if message.message_type() != zbus::message::Type::Signal {
            return Heard::Nothing;
        }
        let header = message.header();
        let Some(member) = header.member() else { return Heard::Nothing };
        match member.as_str() {
            "PropertiesChanged" => {
                let services = header.path().and_then(|path| self.by_path.get(path.as_str()));
                match services {
                    Some(services) if concerns_policy(message) => Heard::Units(services.clone()),
                    Some(_) | None => Heard::Nothing,
                }
            }
            "JobRemoved" => {
                let body = message.body();
                let unit = body.deserialize::<(u32, OwnedObjectPath, String, String)>().map(|(_, _, unit, _)| unit);
                let service = unit.ok().and_then(|unit| self.by_name.get(&unit));
                service.map_or(Heard::Nothing, |service| Heard::Units([service.clone()].into()))
            }
            "UnitFilesChanged" => Heard::Units(self.by_name.values().cloned().collect()),
            // It says `true` before and `false` after.
            "Reloading" => match message.body().deserialize::<bool>() {
                Ok(true) => Heard::Nothing,
                Ok(false) | Err(_) => Heard::Reloaded,
            },
            "NameOwnerChanged" => Heard::Restarted,
            _ => Heard::Nothing,
        }
    }
}

/// Whether a change of properties is one that a policy can care about. When in doubt it is.
fn concerns_policy(message: &zbus::Message) -> bool {
    let body = message.body();
    let Ok((_, changed, invalidated)) = body.deserialize::<(&str, HashMap<&str, Variant<'_>>, Vec<&str>)>() else {
        return true;
    };
    PROPERTIES.iter().any(|property| changed.contains_key(property) || invalidated.contains(property))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Some errors repeat their source.
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
