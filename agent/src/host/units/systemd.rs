//! Units of the running system, over D-Bus.
//!
//! The callers are synchronous threads, and zbus has no blocking interface; so a private current-thread runtime lives in
//! [`Systemd`], and each call blocks on it. This is the one exception to "tokio only in the event loop and the courier". It
//! must never be called from inside another runtime.
//!
//! Between calls nothing is subscribed: nobody would read the signals, and the bus would have to keep them. Each verb opens
//! a connection of its own, and the cached one is for questions only.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath};

use super::systemctl::{Systemctl, journal};
use super::{UnitError, UnitStatus, UnitVerb, Units};
use crate::resource::UnitName;

/// A little longer than systemd's own default limit for a start.
const JOB_DEADLINE: Duration = Duration::from_secs(95);
const CALL_DEADLINE: Duration = Duration::from_secs(25);
/// How long a service that does not report its own readiness must stay up to count as started.
const SETTLE: Duration = Duration::from_millis(700);
/// How long it may take to get there, restarts included.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn get_unit_file_state(&self, name: &str) -> zbus::Result<String>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn try_restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reload_or_try_restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn enable_unit_files(&self, files: &[&str], runtime: bool, force: bool) -> zbus::Result<(bool, Vec<Link>)>;
    fn disable_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<Vec<Link>>;
    fn mask_unit_files(&self, files: &[&str], runtime: bool, force: bool) -> zbus::Result<Vec<Link>>;
    fn unmask_unit_files(&self, files: &[&str], runtime: bool) -> zbus::Result<Vec<Link>>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn reload(&self) -> zbus::Result<()>;
    fn subscribe(&self) -> zbus::Result<()>;
    #[zbus(property)]
    fn system_state(&self) -> zbus::Result<String>;
}

/// A link that was made or removed: what was done, the link, its target.
type Link = (String, String, String);

#[zbus::proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait Unit {
    #[zbus(property)]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn sub_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn unit_file_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn need_daemon_reload(&self) -> zbus::Result<bool>;
}

#[zbus::proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
trait Service {
    #[zbus(property, name = "Type")]
    fn service_type(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn result(&self) -> zbus::Result<String>;
}

/// The systemd that is process 1.
#[derive(Debug)]
pub struct Systemd {
    runtime: tokio::runtime::Runtime,
    bus: RefCell<Option<Connection>>,
    /// While no D-Bus daemon is there, early at boot or for good.
    without_bus: Systemctl,
}

/// Why a conversation came to nothing.
enum Failure {
    /// The bus is not there, went away or does not answer.
    Bus(String),
    /// systemd said no: the error's name and text.
    Refused { name: String, text: String },
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        use zbus::fdo::Error::{Disconnected, NameHasNoOwner, NoReply, NoServer, ServiceUnknown, TimedOut};
        if let zbus::Error::MethodError(name, text, _) = error {
            return Self::Refused { name: name.to_string(), text: text.unwrap_or_else(|| name.to_string()) };
        }
        let zbus::Error::FDO(error) = error else { return Self::Bus(error.to_string()) };
        if let Disconnected(text) | NameHasNoOwner(text) | NoReply(text) | NoServer(text) | ServiceUnknown(text)
        | TimedOut(text) = *error
        {
            return Self::Bus(text);
        }
        let text = zbus::DBusError::description(&*error).unwrap_or("no reason given").to_owned();
        Self::Refused { name: zbus::DBusError::name(&*error).to_string(), text }
    }
}

impl Failure {
    fn is(&self, error_name: &str) -> bool {
        match self {
            Self::Bus(_) => false,
            Self::Refused { name, .. } => name == error_name,
        }
    }

    fn into_error(self, verb: &'static str, unit: &UnitName) -> UnitError {
        match self {
            Self::Bus(reason) => UnitError::Connect { reason },
            Self::Refused { text, .. } => UnitError::Call { verb, unit: unit.to_string(), reason: text },
        }
    }
}

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

impl Systemd {
    /// Prepares the private runtime; connects at the first call.
    pub fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, bus: RefCell::new(None), without_bus: Systemctl::live() })
    }

    /// Blocks until a future ends or the deadline has passed.
    fn wait<T>(&self, deadline: Duration, future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.runtime.block_on(async {
            match tokio::time::timeout(deadline, future).await {
                Ok(result) => result,
                Err(_) => Err(Failure::Bus(format!("no answer within {} s", deadline.as_secs()))),
            }
        })
    }

    fn connect(&self) -> Result<Connection, Failure> {
        self.wait(CALL_DEADLINE, async { Ok(Connection::system().await?) })
    }

    /// The cached connection, or a new one when there is none or the bus has closed it.
    fn cached_bus(&self) -> Result<Connection, Failure> {
        if let Some(bus) = self.bus.borrow().as_ref().filter(|bus| !bus.is_closed()) {
            return Ok(bus.clone());
        }
        let bus = self.connect()?;
        *self.bus.borrow_mut() = Some(bus.clone());
        Ok(bus)
    }

    /// Has a conversation on a connection of its own, and closes it.
    fn converse<T>(
        &self,
        deadline: Duration,
        conversation: impl AsyncFnOnce(&Connection) -> Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        let Ok(bus) = self.connect() else { return Ok(None) };
        let result = self.wait(deadline, conversation(&bus));
        // Whether the bus says goodbye as well is not our concern.
        self.wait(CALL_DEADLINE, async { Ok(bus.close().await?) }).ok();
        result.map(Some)
    }
}

impl Units for Systemd {
    fn status(&self, unit: &UnitName) -> Result<UnitStatus, UnitError> {
        let mut n_failures = 0;
        loop {
            let Ok(bus) = self.cached_bus() else { return self.without_bus.status(unit) };
            match self.wait(CALL_DEADLINE, ask_status(&bus, unit)) {
                // It may have gone since the last call: once more on a new one.
                Err(Failure::Bus(_)) if n_failures == 0 => {
                    n_failures += 1;
                    *self.bus.borrow_mut() = None;
                }
                result => return result.map_err(|failure| failure.into_error("ask about", unit)),
            }
        }
    }

    fn carry_out(&mut self, unit: &UnitName, verb: UnitVerb) -> Result<(), UnitError> {
        // The deadline of the job itself is inside; this one is for a bus that stops answering.
        let deadline = JOB_DEADLINE + SETTLE_LIMIT + CALL_DEADLINE;
        let outcome = self.converse(deadline, async |bus| talk(bus, unit, verb).await);
        let end = match outcome {
            Ok(Some(end)) => end,
            Ok(None) => return self.without_bus.carry_out(unit, verb),
            Err(failure) => return Err(failure.into_error(verb.as_str(), unit)),
        };
        match end {
            End::Done => Ok(()),
            End::Sysv => self.without_bus.carry_out(unit, verb),
            End::Failed { result } => {
                Err(UnitError::Job { verb: verb.as_str(), unit: unit.to_string(), result, journal: journal(unit) })
            }
        }
    }

    fn daemon_reload(&mut self) -> Result<(), UnitError> {
        let reload = async |bus: &Connection| Ok(manager(bus).await?.reload().await?);
        match self.converse(JOB_DEADLINE, reload) {
            Ok(Some(())) => Ok(()),
            Ok(None) => self.without_bus.daemon_reload(),
            Err(Failure::Bus(reason) | Failure::Refused { text: reason, .. }) => Err(UnitError::Connect { reason }),
        }
    }
}

async fn manager(bus: &Connection) -> zbus::Result<ManagerProxy<'static>> {
    ManagerProxy::builder(bus).cache_properties(CacheProperties::No).build().await
}

async fn unit_at(bus: &Connection, path: &OwnedObjectPath) -> zbus::Result<UnitProxy<'static>> {
    UnitProxy::builder(bus).path(path.clone()).cache_properties(CacheProperties::No).build().await
}

async fn service_at(bus: &Connection, path: &OwnedObjectPath) -> zbus::Result<ServiceProxy<'static>> {
    ServiceProxy::builder(bus).path(path.clone()).cache_properties(CacheProperties::No).build().await
}

async fn ask_status(bus: &Connection, unit: &UnitName) -> Result<UnitStatus, Failure> {
    let manager = manager(bus).await?;
    // Loading a unit that has no file makes an object that says "not-found", and is no error.
    let path = manager.load_unit(unit.as_str()).await?;
    let proxy = unit_at(bus, &path).await?;
    // The unit's own property is remembered until the next reload; the manager looks at the disk.
    let unit_file_state = match manager.get_unit_file_state(unit.as_str()).await.map_err(Failure::from) {
        Ok(state) => state,
        Err(Failure::Refused { .. }) => proxy.unit_file_state().await?,
        Err(failure @ Failure::Bus(_)) => return Err(failure),
    };
    Ok(UnitStatus {
        load_state: proxy.load_state().await?,
        active_state: proxy.active_state().await?,
        sub_state: proxy.sub_state().await?,
        unit_file_state,
        need_daemon_reload: proxy.need_daemon_reload().await?,
    })
}

/// How a verb ended.
enum End {
    Done,
    Failed {
        result: String,
    },
    /// The unit is generated from an init script, which only `systemctl` knows how to enable.
    Sysv,
}

async fn talk(bus: &Connection, unit: &UnitName, verb: UnitVerb) -> Result<End, Failure> {
    let manager = manager(bus).await?;
    let files = [unit.as_str()];
    let links = match verb {
        UnitVerb::Start | UnitVerb::Stop | UnitVerb::TryRestart | UnitVerb::ReloadOrTryRestart => {
            return run_job(bus, &manager, unit, verb).await;
        }
        UnitVerb::ResetFailed => {
            return match manager.reset_failed_unit(unit.as_str()).await.map_err(Failure::from) {
                Ok(()) => Ok(End::Done),
                // What is not loaded has not failed.
                Err(failure) if failure.is(NO_SUCH_UNIT) => Ok(End::Done),
                Err(failure) => Err(failure),
            };
        }
        UnitVerb::Enable => {
            if is_generated(&manager, unit).await {
                return Ok(End::Sysv);
            }
            let (has_install_section, links) = manager.enable_unit_files(&files, false, false).await?;
            if !has_install_section && links.is_empty() {
                let text =
                    "its unit file has no [Install] section, so it can only be started by another unit".to_owned();
                return Err(Failure::Refused { name: String::new(), text });
            }
            links
        }
        UnitVerb::Disable => {
            if is_generated(&manager, unit).await {
                return Ok(End::Sysv);
            }
            let mut links = manager.disable_unit_files(&files, false).await?;
            // Enabled until the next boot is enabled as well.
            links.extend(manager.disable_unit_files(&files, true).await?);
            links
        }
        UnitVerb::Mask => manager.mask_unit_files(&files, false, false).await?,
        UnitVerb::Unmask => {
            let mut links = manager.unmask_unit_files(&files, false).await?;
            links.extend(manager.unmask_unit_files(&files, true).await?);
            links
        }
    };
    if !links.is_empty() {
        manager.reload().await?;
    }
    Ok(End::Done)
}

async fn is_generated(manager: &ManagerProxy<'_>, unit: &UnitName) -> bool {
    manager.get_unit_file_state(unit.as_str()).await.is_ok_and(|state| state == "generated")
}

async fn run_job(
    bus: &Connection,
    manager: &ManagerProxy<'_>,
    unit: &UnitName,
    verb: UnitVerb,
) -> Result<End, Failure> {
    match manager.subscribe().await.map_err(Failure::from) {
        Ok(()) => {}
        Err(failure) if failure.is("org.freedesktop.systemd1.AlreadySubscribed") => {}
        Err(failure) => return Err(failure),
    }
    // Only our unit's signals, so that the queue never fills up while we wait for a reply behind it.
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.systemd1")
        .interface("org.freedesktop.systemd1.Manager")
        .member("JobRemoved")
        .arg(2, unit.as_str())
        .build()?;
    let mut removed = MessageStream::for_match_rule(rule, bus, None).await?;
    // While the host boots or goes down, its own queued jobs come first.
    let mode = match manager.system_state().await?.as_str() {
        "starting" | "stopping" => "fail",
        _ => "replace",
    };
    let name = unit.as_str();
    // The other verbs leave a unit alone that does not run, and its old failure is not theirs.
    let will_run = verb == UnitVerb::Start || {
        let path = manager.load_unit(name).await?;
        let state = unit_at(bus, &path).await?.active_state().await?;
        matches!(state.as_str(), "active" | "reloading" | "activating")
    };
    let job = match verb {
        UnitVerb::Stop => manager.stop_unit(name, mode).await,
        UnitVerb::TryRestart => manager.try_restart_unit(name, mode).await,
        UnitVerb::ReloadOrTryRestart => manager.reload_or_try_restart_unit(name, mode).await,
        UnitVerb::Start
        | UnitVerb::Enable
        | UnitVerb::Disable
        | UnitVerb::Mask
        | UnitVerb::Unmask
        | UnitVerb::ResetFailed => manager.start_unit(name, mode).await,
    };
    let job = match job.map_err(Failure::from) {
        Ok(job) => job,
        // What is not loaded does not run.
        Err(failure) if verb == UnitVerb::Stop && failure.is(NO_SUCH_UNIT) => return Ok(End::Done),
        Err(failure) => return Err(failure),
    };
    let result = async {
        while let Some(message) = removed.next().await {
            let (_, path, _, result): (u32, OwnedObjectPath, String, String) = message?.body().deserialize()?;
            if path == job {
                return Ok(result);
            }
        }
        Err(Failure::Bus("the bus closed the connection".to_owned()))
    };
    let result = match tokio::time::timeout(JOB_DEADLINE, result).await {
        Ok(result) => result?,
        Err(_) => return Ok(End::Failed { result: format!("not finished after {} s", JOB_DEADLINE.as_secs()) }),
    };
    match result.as_str() {
        "done" if verb == UnitVerb::Stop || !will_run => Ok(End::Done),
        "done" => settle(bus, manager, unit).await,
        // systemd found the job not applicable, such as a reload of a unit that does not run.
        "skipped" => Ok(End::Done),
        _ => {
            let path = manager.load_unit(name).await?;
            Ok(End::Failed { result: with_reason(bus, &path, &result).await })
        }
    }
}

/// Watches a service whose start counts as done the moment its process exists: one that ends at once has not started.
async fn settle(bus: &Connection, manager: &ManagerProxy<'_>, unit: &UnitName) -> Result<End, Failure> {
    if !unit.as_str().ends_with(".service") {
        return Ok(End::Done);
    }
    let path = manager.load_unit(unit.as_str()).await?;
    // The others have said themselves that they are ready.
    if !matches!(service_at(bus, &path).await?.service_type().await?.as_str(), "simple" | "exec" | "idle") {
        return Ok(End::Done);
    }
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.systemd1")
        .interface("org.freedesktop.DBus.Properties")
        .member("PropertiesChanged")
        .path(path.clone())
        .build()?;
    let mut changes = MessageStream::for_match_rule(rule, bus, None).await?;
    let proxy = unit_at(bus, &path).await?;
    let limit = tokio::time::Instant::now() + SETTLE_LIMIT;
    loop {
        let (active, sub) = (proxy.active_state().await?, proxy.sub_state().await?);
        let is_up = match active.as_str() {
            "failed" => return Ok(End::Failed { result: with_reason(bus, &path, "failed").await }),
            // It ended well, or somebody stopped it: the next observation tells.
            "inactive" | "deactivating" => return Ok(End::Done),
            "active" | "reloading" => true,
            _ => false,
        };
        let until = if is_up { limit.min(tokio::time::Instant::now() + SETTLE) } else { limit };
        // Each change of the unit starts the wait anew, so that one that restarts for ever never counts as settled.
        match tokio::time::timeout_at(until, changes.next()).await {
            Ok(Some(_)) => {}
            Ok(None) => return Err(Failure::Bus("the bus closed the connection".to_owned())),
            Err(_) if is_up && until < limit => return Ok(End::Done),
            Err(_) => {
                let state = format!("{active} ({sub}) {} s after its start", SETTLE_LIMIT.as_secs());
                return Ok(End::Failed { result: with_reason(bus, &path, &state).await });
            }
        }
    }
}

/// Adds systemd's word for why a service ended, where there is one: `failed (exit-code)`.
async fn with_reason(bus: &Connection, path: &OwnedObjectPath, result: &str) -> String {
    let reason = async { service_at(bus, path).await?.result().await };
    match reason.await {
        Ok(reason) if reason != "success" => format!("{result} ({reason})"),
        Ok(_) | Err(_) => result.to_owned(),
    }
}
