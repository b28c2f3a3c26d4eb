//! `rekindle demo`: the whole life of a host in a minute; as anyone in a sandbox directory, as root on a booted machine.
//!
//! Nothing here is pretended: the policy is a signed commit in a git repository, the agent and the courier are the real
//! services as processes of their own, the hub is the real hub over TLS, and every line that says something happened has
//! seen it happen. The exit code says whether all of it was seen. What the demo makes is gone when it ends, also when it
//! is interrupted.

mod booted;
mod files;
mod narration;
mod peers;
mod receiver;
mod repository;
mod sandbox;
mod signer;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;

pub(super) use self::booted::engine::COMMAND as ENGINE_COMMAND;
use self::narration::Scenes;
use super::output::{BAD, DIM, GOOD, span};
use super::{Out, Outcome, exit, services};

/// Arguments of `rekindle demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Play on a throwaway booted machine, with users, packages, services and a rebirth; needs root and systemd-nspawn
    #[arg(long)]
    host: bool,
    /// Boot the machine from this Debian root directory, which is only read, instead of bootstrapping one
    #[arg(long, value_name = "DIR", requires = "host")]
    image: Option<PathBuf>,
    /// Keep the demo's directory, to look around in it
    #[arg(long)]
    keep: bool,
}

/// Arguments of the program that the demo's hub calls to re-create a host.
#[derive(Debug, Args)]
pub struct DemoEngine {
    /// Where the demo listens
    socket: PathBuf,
}

/// Where machines have their disks: unlike `/tmp` seldom in memory.
const DISKS: &str = "/var/tmp";

/// Runs the demo.
pub fn run(args: &Demo, out: &mut Out) -> Outcome {
    let runtime = services::current_thread()?;
    let started = Instant::now();
    let image = if args.host { Some(booted::find_image(args.image.as_deref())?) } else { None };
    let parent = match std::env::var_os("TMPDIR") {
        None if args.host => Path::new(DISKS).to_path_buf(),
        None | Some(_) => std::env::temp_dir(),
    };
    // Short paths: a unix socket's name has at most 107 bytes.
    let directory =
        tempfile::Builder::new().prefix("rekindle-demo-").tempdir_in(&parent).context("cannot make a sandbox")?;
    let mut scenes = Scenes::new(out);
    let result = runtime.block_on(async {
        match image {
            Some(image) => booted::play(&mut scenes, directory.path(), image).await,
            None => sandbox::play(&mut scenes, directory.path()).await,
        }
    });
    // A thread that still looks for a repair must not hold up the end.
    runtime.shutdown_background();
    if args.keep {
        let path = directory.keep();
        scenes.say(&format!("{DIM}the sandbox is kept in {}{DIM:#}", path.display()))?;
    } else {
        directory.close().context("cannot remove the demo's directory")?;
    }
    scenes.end(&result)?;
    match result {
        Ok(()) => {
            scenes.say(&format!("{GOOD}all of it was seen{GOOD:#}, in {}", span(started.elapsed())))?;
            Ok(exit::OK)
        }
        Err(error) => {
            scenes.say(&format!("{BAD}not seen{BAD:#}"))?;
            Err(error.into())
        }
    }
}

/// Hands the intent on standard input to the demo, and ends when the demo has re-created the host.
pub fn run_engine(args: &DemoEngine) -> Outcome {
    services::current_thread()?.block_on(booted::engine::call(&args.socket))?;
    Ok(exit::OK)
}
