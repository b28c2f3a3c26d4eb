//! Answers on the control socket, each in a task of its own.

use std::sync::{Arc, mpsc as std_mpsc};

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::control::{self, Answer, Insight, Request};
use super::status::WatchCounts;
use super::worker::{Shared, Task};
use super::{Event, Loop};
use crate::guard::Guard;
use crate::resource::{Kind, chain};
use crate::watch::{Complaint, Coverage, Hint, How};

impl Loop {
    pub(super) fn take_session(&mut self, mut stream: UnixStream) {
        let shared = Arc::clone(&self.shared);
        let (tasks, events) = (self.tasks.clone(), self.events.clone());
        let coverage = self.watcher.coverage();
        let bus = complaint("services", &self.unit_coverage.borrow());
        let guard = Arc::clone(&self.guard);
        self.sessions.spawn(async move {
            let answer = match control::read_request(&mut stream).await {
                Ok(request) => answer(request, &shared, &guard, &tasks, &events, &coverage, bus).await,
                Err(error) => Answer::Refused(chain(&error)),
            };
            if let Err(error) = control::write_answer(&mut stream, &answer).await {
                warn!("control: {}", chain(&error));
            }
        });
    }
}

async fn answer(
    request: Request,
    shared: &Shared,
    guard: &Guard,
    tasks: &std_mpsc::Sender<Task>,
    events: &mpsc::UnboundedSender<Event>,
    coverage: &Coverage,
    bus: Option<String>,
) -> Answer {
    match request {
        Request::Status => {
            let mut status = shared.status().clone();
            status.n_watched = coverage.n_interests();
            status.watches = WatchCounts {
                fanotify: coverage.n_fanotify,
                inotify: coverage.n_inotify,
                polled: coverage.n_polled,
                blind: coverage.n_blind,
            };
            status.degraded_watches = complaints(coverage).chain(bus).collect();
            status.n_guarded = guard.readiness().n_guarded;
            Answer::Status(Box::new(status))
        }
        Request::Why { resource } => {
            let status = shared.status();
            let of_it = |c: &&Complaint| c.interest.resource == resource;
            let not_watched = coverage.complaints.iter().filter(of_it);
            Answer::Why(Box::new(Insight {
                verdict: status.out_of_sync.get(&resource).cloned(),
                contested: status.contested.iter().find(|c| c.resource == resource).map(|c| c.summary.clone()),
                not_watched: not_watched
                    .filter_map(|c| complaint(&c.interest.path.display().to_string(), &c.how))
                    .collect(),
                guarded: guard.guards(&resource),
            }))
        }
        Request::Look => {
            // A pause that begins now holds from now on; the run that comes guards what it does not cover.
            guard.disarm();
            match events.send(Event::Hint(Hint::Everything { why: "an operator asked" })) {
                Ok(()) => Answer::Done,
                Err(_gone) => Answer::Refused("the agent is stopping".to_owned()),
            }
        }
        Request::Reimage { reason } => {
            let (reply, answered) = oneshot::channel();
            if tasks.send(Task::Reimage { reason, reply }).is_err() {
                return Answer::Refused("the agent is stopping".to_owned());
            }
            match answered.await {
                Ok(Ok(id)) => Answer::Requested(id),
                Ok(Err(why)) => Answer::Refused(why),
                Err(_gone) => Answer::Refused("the agent is stopping".to_owned()),
            }
        }
    }
}

/// What an operator is told about something that is not watched by events.
pub(super) fn complaint(what: &str, how: &How) -> Option<String> {
    match how {
        How::Watched => None,
        How::Polled { why } => Some(format!("{what}: polled, because {why}")),
        How::Blind { why } => Some(format!("{what}: looked at only by the full scan, because {why}")),
    }
}

pub(super) fn complaints(coverage: &Coverage) -> impl Iterator<Item = String> {
    // The kernel tells nobody of these: polling them is how they are watched.
    let is_meant = |kind: Kind| matches!(kind, Kind::Sysctl | Kind::KernelModule);
    let complaints = coverage.complaints.iter().filter(move |c| !is_meant(c.interest.resource.kind));
    let paths = complaints.filter_map(|c| complaint(&c.interest.path.display().to_string(), &c.how));
    paths.chain(coverage.self_test.iter().map(|why| format!("the watches: {why}")))
}
