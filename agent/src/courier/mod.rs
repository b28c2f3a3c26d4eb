//! The unprivileged, asynchronous half: it pulls the policy, delivers alerts, and speaks to the central endpoint.
//!
//! It has the network and no privilege. It writes its own directory and the inbox, removes delivered messages from the
//! outbox, and touches nothing else; it never imports `converge` or `host`, and never judges a policy or the host.
//!
//! One loop owns all state. Every piece of work is a task that the loop starts, joins and takes the result of; the loop
//! itself only looks at what is there and starts what is due, so losing a wake-up costs time and nothing else.

mod backoff;
mod deliver;
mod endpoint;
pub mod fetch;
mod http;
mod metrics;
mod pull;
mod pulls;
mod queue;
mod sign;

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use notify::{EventKindMask, RecommendedWatcher, RecursiveMode, Watcher as _};
use sd_notify::NotifyState;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tracing::{error, info, warn};

use self::deliver::{Attempt, Deliveries};
use self::endpoint::{Endpoint, EndpointDone, Spools};
use self::fetch::FetchError;
use self::http::chain;
use self::pulls::Pulls;
use self::queue::{Kind, Queue};
use crate::config::Settings;
use crate::spool::{CourierState, Outgoing, OutgoingBody, ReceiverState, ReimageCall, ReimageReply, Spool, SpoolError};

/// Time between looks at the outbox that no event asked for.
const RESCAN: Duration = Duration::from_secs(30);

/// The same while the outbox cannot be watched.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(2);

/// Shortest time between two writings of the courier's state, which wake the agent.
const STATE_GAP: Duration = Duration::from_secs(1);

/// Time that a shutdown leaves to what is under way; what is not finished is repeated after the next start.
const FAREWELL: Duration = Duration::from_secs(3);

/// Why the courier ended.
#[derive(Debug, thiserror::Error)]
pub enum CourierError {
    /// A directory that it cannot work without.
    #[error("cannot use the spool directories")]
    Spool {
        /// Which and why.
        #[source]
        source: SpoolError,
    },
    /// A task of its own ended without a result, which is a bug.
    #[error("a task of the courier died")]
    Task {
        /// How.
        #[source]
        source: JoinError,
    },
}

/// The end of a task.
#[derive(Debug)]
enum Done {
    Pull(Result<String, FetchError>),
    Delivery { receiver: usize, id: String, attempt: Attempt },
    Endpoint(Box<EndpointDone>),
}

/// Runs the courier until `shutdown` is ready. The fetch child is this very program, started again.
pub async fn run(settings: &Settings, shutdown: impl Future<Output = ()>) -> Result<(), CourierError> {
    // The link names the program that runs, also after an upgrade has replaced its file.
    run_with(settings, Path::new("/proc/self/exe"), shutdown).await
}

/// Runs the courier with `exe` as the program that understands `__fetch`.
pub async fn run_with(settings: &Settings, exe: &Path, shutdown: impl Future<Output = ()>) -> Result<(), CourierError> {
    let open = |path: &Path| Spool::open(path).map_err(|source| CourierError::Spool { source });
    let (outbox, inbox) = (open(&settings.paths.outbox())?, open(&settings.paths.inbox())?);
    let own = open(&settings.paths.courier())?;
    let changed = Arc::new(Notify::new());
    let watcher = watch(&settings.paths.outbox(), &changed);
    let mut courier = Courier::load(settings, exe, &outbox, &inbox, &own);
    let mut calls = JoinSet::new();
    // What may be broken off at any time: pulls, and waiting for the endpoint.
    let mut waits = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let mut metrics = pin!(metrics::serve(settings));
    let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 3);
    tell(&[NotifyState::Ready]);
    info!(version = env!("CARGO_PKG_VERSION"), "the courier is ready");
    loop {
        courier.look(&mut calls, &mut waits);
        tell(&[NotifyState::Watchdog, NotifyState::Status(&courier.status())]);
        let rescan = if watcher.is_some() { RESCAN } else { RESCAN_UNWATCHED };
        let idle = watchdog.map_or(rescan, |limit| limit.min(rescan));
        let now = Instant::now();
        // Whatever is due was started above; what is due all the same must not keep the loop spinning.
        let wake = courier.next_wake().map_or(now + idle, |due| due.clamp(now + Duration::from_millis(20), now + idle));
        let ended = tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = calls.join_next(), if !calls.is_empty() => Some(ended),
            Some(ended) = waits.join_next(), if !waits.is_empty() => Some(ended),
            never = &mut metrics => match never {},
            () = changed.notified() => None,
            () = tokio::time::sleep_until(wake) => None,
        };
        if let Some(ended) = ended {
            courier.finish(ended.map_err(|source| CourierError::Task { source })?);
        }
    }
    tell(&[NotifyState::Stopping]);
    waits.shutdown().await;
    let farewell = async {
        while let Some(ended) = calls.join_next().await {
            courier.finish(ended.map_err(|source| CourierError::Task { source })?);
        }
        Ok(())
    };
    match tokio::time::timeout(FAREWELL, farewell).await {
        Ok(ended) => ended?,
        Err(_) => calls.shutdown().await,
    }
    courier.settle();
    info!("the courier has stopped");
    Ok(())
}

/// Wakes the loop when the outbox changes. Without a watch the loop looks more often.
fn watch(outbox: &Path, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let wake = Arc::clone(changed);
    // The default would also report every opening of a file, our own among them.
    let config = notify::Config::default().with_event_kinds(EventKindMask::CORE);
    let watcher = RecommendedWatcher::new(move |_| wake.notify_one(), config)
        .and_then(|mut watcher| watcher.watch(outbox, RecursiveMode::NonRecursive).map(|()| watcher));
    watcher
        .inspect_err(
            |error| warn!(error = %chain(error), "cannot watch the outbox; looking every {RESCAN_UNWATCHED:?}"),
        )
        .ok()
}

/// Tells the service manager, if there is one.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "cannot notify the service manager");
    }
}

/// Everything that the loop owns.
#[derive(Debug)]
struct Courier<'a> {
    outbox: &'a Spool,
    inbox: &'a Spool,
    own: &'a Spool,
    queue: Queue,
    pulls: Pulls<'a>,
    deliveries: Deliveries,
    endpoint: Option<Endpoint>,
    written: Option<(CourierState, Instant)>,
    write_at: Option<Instant>,
}

impl<'a> Courier<'a> {
    fn load(settings: &'a Settings, exe: &'a Path, outbox: &'a Spool, inbox: &'a Spool, own: &'a Spool) -> Self {
        let spools = Spools { outbox, inbox, own };
        Self {
            outbox,
            inbox,
            own,
            queue: Queue::default(),
            pulls: Pulls::load(settings, exe, inbox),
            deliveries: Deliveries::load(&settings.webhooks, own),
            endpoint: settings.reimage.as_ref().map(|settings| Endpoint::load(settings, spools)),
            written: None,
            write_at: None,
        }
    }

    /// Looks at everything and starts what is due.
    fn look(&mut self, calls: &mut JoinSet<Done>, waits: &mut JoinSet<Done>) {
        if let Err(error) = self.queue.refresh(self.outbox) {
            error!(error = %chain(&error), "cannot look at the outbox");
        }
        self.deliveries.look(&mut self.queue, self.outbox, self.own, calls);
        let spools = self.spools();
        match &mut self.endpoint {
            Some(endpoint) => {
                endpoint.look(&mut self.queue, spools, calls, waits);
                if let Some(revision) = endpoint.take_hint() {
                    self.pulls.expect(&revision);
                }
            }
            None => self.answer_without_endpoint(),
        }
        self.pulls.look(self.outbox, waits);
        self.write_state();
    }

    fn finish(&mut self, done: Done) {
        let spools = self.spools();
        match done {
            Done::Pull(result) => self.pulls.finish(result, self.inbox),
            Done::Delivery { receiver, id, attempt } => self.deliveries.finish(receiver, id, attempt, Timestamp::now()),
            Done::Endpoint(done) => {
                if let Some(endpoint) = &mut self.endpoint {
                    endpoint.finish(*done, &mut self.queue, spools);
                }
            }
        }
    }

    /// Brings to the disk what the last tasks brought.
    fn settle(&mut self) {
        self.deliveries.settle(&mut self.queue, self.outbox, self.own);
        self.written = None;
        self.write_state();
    }

    fn spools(&self) -> Spools<'a> {
        Spools { outbox: self.outbox, inbox: self.inbox, own: self.own }
    }

    fn next_wake(&self) -> Option<Instant> {
        let endpoint = self.endpoint.as_ref().and_then(Endpoint::next_wake);
        [self.deliveries.next_wake(), endpoint, self.pulls.next_wake(), self.write_at].into_iter().flatten().min()
    }

    /// Answers reimage calls on a host without an endpoint: nobody is there who could grant one.
    fn answer_without_endpoint(&mut self) {
        let ids: Vec<String> =
            self.queue.iter().filter(|(_, kind)| *kind == Kind::Reimage).map(|(id, _)| id.to_owned()).collect();
        for id in ids {
            if let Ok(Some(Outgoing { body: OutgoingBody::Reimage(ReimageCall::Request { request, .. }), .. })) =
                self.outbox.read(&id)
            {
                let reply = ReimageReply {
                    version: 1,
                    request,
                    state: rekindle_protocol::ReimageState::Denied.word().to_owned(),
                    reason: Some("no endpoint is configured in `[reimage]`".to_owned()),
                    retry_after: None,
                    grant_ends: None,
                };
                if let Err(error) = self.inbox.write_slot(&reply) {
                    error!(error = %chain(&error), "cannot answer the agent");
                    continue;
                }
            }
            self.queue.remove(self.outbox, &id);
        }
    }

    fn state(&self) -> CourierState {
        let receivers: Vec<ReceiverState> =
            self.deliveries.states().chain(self.endpoint.as_ref().map(Endpoint::state)).collect();
        let identity = self.endpoint.as_ref().and_then(Endpoint::identity);
        CourierState {
            version: 1,
            at: Timestamp::now(),
            queued: u32::try_from(self.queue.len()).unwrap_or(u32::MAX),
            receivers,
            host_id: identity.as_ref().map(|(host_id, _)| host_id.clone()),
            incarnation: identity.map(|(_, incarnation)| incarnation),
        }
    }

    /// Writes the courier's state when it differs from what was written, not more often than every [`STATE_GAP`].
    fn write_state(&mut self) {
        let (state, now) = (self.state(), Instant::now());
        self.write_at = None;
        if let Some((written, when)) = &self.written {
            if (CourierState { at: written.at, ..state.clone() }) == *written {
                return;
            }
            if now.duration_since(*when) < STATE_GAP {
                self.write_at = Some(*when + STATE_GAP);
                return;
            }
        }
        match self.inbox.write_slot(&state) {
            Ok(()) => {}
            Err(error) => warn!(error = %chain(&error), "cannot write the courier's state"),
        }
        // Also after a failure, so that it is tried again at the same pace and not in a loop.
        self.written = Some((state, now));
    }

    fn status(&self) -> String {
        let errors: Vec<String> =
            self.state().receivers.into_iter().filter_map(|r| Some(format!("{}: {}", r.name, r.error?))).collect();
        let trouble = self.pulls.error().map(|error| format!("; policy: {error}")).unwrap_or_default();
        let errors = if errors.is_empty() { String::new() } else { format!("; {}", errors.join("; ")) };
        format!("{} queued{trouble}{errors}", self.queue.len()).replace('\n', " ")
    }
}
