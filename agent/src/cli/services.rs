//! `agent` and `courier`: the two services.

use std::io::IsTerminal as _;

use clap::Args;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;

use super::{CliError, Global, Out, Outcome, exit, settings};

/// Arguments of `rekindle agent`.
#[derive(Debug, Args)]
pub(super) struct Agent {
    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    check_config: bool,
}

/// Arguments of `rekindle courier`.
#[derive(Debug, Args)]
pub(super) struct Courier {
    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    check_config: bool,
}

/// Runs the agent until SIGTERM.
pub(super) fn agent(global: &Global, args: &Agent, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    if args.check_config {
        return good(out);
    }
    crate::host::memory::be_frugal();
    start_logging()?;
    current_thread()?.block_on(crate::agent::run(settings, global.config.clone()))?;
    Ok(exit::OK)
}

/// Runs the courier until SIGTERM.
pub(super) fn courier(global: &Global, args: &Courier, out: &mut Out) -> Outcome {
    let settings = settings(global)?;
    if args.check_config {
        return good(out);
    }
    crate::host::memory::be_frugal();
    start_logging()?;
    current_thread()?.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        crate::courier::run(&settings, shutdown).await.map_err(anyhow::Error::from)
    })?;
    Ok(exit::OK)
}

fn good(out: &mut Out) -> Outcome {
    if out.is_json() {
        out.value(&serde_json::json!({ "version": 1, "valid": true }))?;
    } else {
        out.line("the configuration is valid")?;
    }
    Ok(exit::OK)
}

/// One thread is enough for timers, sockets and signals; the work happens on threads and processes of its own.
pub(super) fn current_thread() -> Result<tokio::runtime::Runtime, CliError> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Logs go to standard error, a line an event, fields included: what `journalctl` shows must say which resource it is about.
/// Under systemd each line begins with its priority, as sd-daemon(3) has it. `REKINDLE_LOG` sets the level.
fn start_logging() -> Result<(), CliError> {
    let level = match std::env::var("REKINDLE_LOG") {
        Ok(text) => text.parse::<LevelFilter>().map_err(|_unknown| {
            anyhow::anyhow!("REKINDLE_LOG=`{text}` is no level\nhint: one of error, warn, info, debug, trace")
        })?,
        Err(_unset) => LevelFilter::INFO,
    };
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let for_journal = journal.then(|| {
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).event_format(JournalLine)
    });
    let colors = std::io::stderr().is_terminal();
    let for_people = (!journal).then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(colors)
            .with_target(false)
            .without_time()
    });
    let subscriber = tracing_subscriber::registry().with(level).with(for_journal).with(for_people);
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(())
}

/// `<priority>message field=value …`.
struct JournalLine;

impl<S, N> FormatEvent<S, N> for JournalLine
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            tracing::Level::ERROR => 3,
            tracing::Level::WARN => 4,
            tracing::Level::INFO => 6,
            tracing::Level::DEBUG | tracing::Level::TRACE => 7,
        };
        let mut line = String::new();
        context.field_format().format_fields(Writer::new(&mut line), event)?;
        // The priority counts for one line; the lines of a longer text keep it.
        for part in line.lines() {
            writeln!(writer, "<{priority}>{part}")?;
        }
        Ok(())
    }
}
