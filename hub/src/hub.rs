//! Puts the parts together, and takes them apart again.
//!
//! Every task is joined; the end of one that was not told to end ends the hub.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::config::{Group, HubOptions};
use crate::engine::{self, Dispatch, chain};
use crate::http::listener;
use crate::store::Store;
use crate::{Admin, HubError, control, http, reimages};

/// How often deadlines are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// How long tasks have to end after they were told to.
const STOP: Duration = Duration::from_secs(15);

/// What every call needs.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) store: Store,
    pub(crate) checkin: Duration,
    pub(crate) epoch: u64,
    groups: BTreeMap<String, Group>,
    /// A group that no configuration names: nothing is permitted in it.
    no_group: Group,
    changed: watch::Sender<u64>,
    intents: mpsc::UnboundedSender<Dispatch>,
    stop: watch::Sender<bool>,
}

impl Hub {
    /// Returns a group's settings; one that is not configured permits nothing.
    pub(crate) fn group(&self, name: &str) -> &Group {
        self.groups.get(name).unwrap_or(&self.no_group)
    }

    /// Returns the names of the configured groups.
    pub(crate) fn group_names(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// Returns a time after another.
    pub(crate) fn after(&self, now: Timestamp, span: Duration) -> Timestamp {
        now.checked_add(span).unwrap_or(Timestamp::MAX)
    }

    /// Wakes whoever waits for a request to change.
    pub(crate) fn announce(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Returns what [`Hub::announce`] wakes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns what tells everything to end.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    /// Hands a committed intent to the dispatcher.
    pub(crate) fn dispatch(&self, dispatch: Dispatch) {
        let id = dispatch.reimage.id.clone();
        if self.intents.send(dispatch).is_err() {
            // The hub is stopping. The next start finds the intent without a result and holds it.
            tracing::error!(reimage = %id, "the intent is committed and was not dispatched: it will be held");
        }
    }
}

/// A hub at work.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub addr: SocketAddr,
    hub: Arc<Hub>,
    tasks: JoinSet<()>,
}

/// Opens the database, holds what a crash left in doubt, and starts to serve.
pub async fn start(options: HubOptions) -> Result<Running, HubError> {
    if options.tls.is_none() && !options.listen.ip().is_loopback() {
        return Err(HubError::Settings {
            what: format!("`{}` is not a loopback address, and there is no certificate", options.listen),
            hint: "set `certificate` and `key`; plain HTTP would show tokens to the network",
        });
    }
    let tls = options.tls.map(|identity| listener::acceptor(&identity)).transpose()?;
    let store = Store::open(&options.database).await.map_err(HubError::Store)?;
    let epoch = store.epoch().await.map_err(HubError::Store)?;
    let (intents, inbox) = mpsc::unbounded_channel();
    let hub = Arc::new(Hub {
        store,
        checkin: options.checkin,
        epoch,
        groups: options.groups,
        no_group: Group::default(),
        changed: watch::channel(0).0,
        intents,
        stop: watch::channel(false).0,
    });
    match reimages::recover(&hub, Timestamp::now()).await {
        Ok(_) => {}
        Err(crate::CallError::Store(error)) => return Err(HubError::Store(error)),
        Err(crate::CallError::Refused(_) | crate::CallError::Random) => return Err(HubError::Died),
    }
    let listen = |source| HubError::Listen { addr: options.listen, source };
    let socket = tokio::net::TcpListener::bind(options.listen).await.map_err(listen)?;
    let addr = socket.local_addr().map_err(listen)?;
    let control_socket = options.control.map(control::Socket::bind).transpose()?;

    let mut tasks = JoinSet::new();
    tasks.spawn(engine::run(Arc::clone(&hub), inbox, hub.stopping()));
    tasks.spawn(sweep(Arc::clone(&hub), hub.stopping()));
    tasks.spawn(listener::serve(socket, tls, http::router(Arc::clone(&hub)), hub.stopping()));
    if let Some(control_socket) = control_socket {
        tasks.spawn(control::serve(control_socket, Arc::clone(&hub), hub.stopping()));
    }
    tracing::info!(%addr, "listening");
    Ok(Running { addr, hub, tasks })
}

impl Running {
    /// Returns what people do, for a caller in this process.
    pub fn admin(&self) -> Admin {
        Admin::new(Arc::clone(&self.hub), "operator:embedded".to_owned())
    }

    /// Waits until a part of the hub ends, which none does by itself.
    pub async fn died(&mut self) -> HubError {
        match self.tasks.join_next().await {
            Some(Ok(())) | None => {}
            Some(Err(error)) => tracing::error!(%error, "a task of the hub ended"),
        }
        HubError::Died
    }

    /// Ends every part in order, and the database last.
    pub async fn stop(mut self) {
        self.hub.stop.send_replace(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP, all).await.is_err() {
            tracing::warn!("parts of the hub did not end in time");
            self.tasks.shutdown().await;
        }
        self.hub.store.pool.close().await;
    }
}

/// Waits until everything is told to end.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the hub is gone, which is an end as well. The guard within must not live across an await.
    let told = stop.wait_for(|stop| *stop).await.is_ok();
    tracing::trace!(told, "ending");
}

async fn sweep(hub: Arc<Hub>, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopped(&mut stop) => return,
        }
        if let Err(error) = reimages::sweep(&hub, Timestamp::now()).await {
            tracing::error!(error = %chain(&error), "cannot look at deadlines");
        }
    }
}
