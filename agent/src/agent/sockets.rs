//! The places where others reach the agent: its sockets, and the inbox that the courier writes to.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use anyhow::Context as _;
use notify::Watcher as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tracing::warn;

use super::Event;

/// Tells the loop whenever the courier has renamed something into the inbox.
pub(super) fn watch_inbox(
    inbox: &Path,
    events: mpsc::UnboundedSender<Event>,
) -> anyhow::Result<notify::RecommendedWatcher> {
    let config = notify::Config::default().with_event_kinds(notify::EventKindMask::CORE);
    let mut watcher = notify::RecommendedWatcher::new(
        move |_event| {
            // An error says "look" just as well as an event does.
            drop(events.send(Event::Inbox));
        },
        config,
    )
    .context("cannot watch the inbox")?;
    watcher
        .watch(inbox, notify::RecursiveMode::NonRecursive)
        .with_context(|| format!("cannot watch `{}`", inbox.display()))?;
    Ok(watcher)
}

/// Binds the control socket, mode 0600. A socket left by a killed agent is replaced; anything else at its place is not.
pub(super) fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                anyhow::bail!("another agent answers on `{}`", path.display());
            }
            remove_socket(path);
        }
        Ok(_) => anyhow::bail!("`{}` is in the way of a socket and is no socket", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at `{}`", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot bind `{}`", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect `{}`", path.display()))?;
    Ok(listener)
}

/// Whether the other side is root, or the agent's own user. The mode of the socket says the same, but only from a moment after
/// it was bound.
pub(super) fn may_control(stream: &UnixStream) -> io::Result<bool> {
    let uid = stream.peer_cred()?.uid();
    Ok(uid == 0 || uid == crate::host::current_ids().0)
}

pub(super) fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!("cannot remove `{}`: {error}", path.display());
    }
}
