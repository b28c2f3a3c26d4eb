//! Commands, and how their answers look to a person. `--json` prints what the hub answered, with a `version`.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand};
use jiff::{Timestamp, Unit};
use rekindle_hub::admin::{HostSummary, NewToken, ReimageDetail, ReimageSummary, TokenCreated};
use rekindle_hub::config::{self, DEFAULT_CONTROL};
use rekindle_hub::control::{self, ControlRequest};
use rekindle_hub::{AuditCheck, AuditEntry, HubError};
use rekindle_protocol::{HostId, ReimageState, ReimageStatus};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

/// The central endpoint of rekindle: hosts enrol, check in and ask to be reimaged; people decide
#[derive(Debug, Parser)]
#[command(name = "rekindle-hub", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Configuration; commands other than `serve` only look there for the control socket
    #[arg(long, global = true, value_name = "FILE", default_value = "/etc/rekindle-hub/hub.toml")]
    config: PathBuf,
    /// Control socket of the running hub, instead of the one that the configuration names
    #[arg(long, global = true, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the hub
    Serve {
        /// Speak plain HTTP, which is permitted on a loopback address only
        #[arg(long)]
        insecure_loopback: bool,
    },
    /// Make join tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// List the hosts
    Hosts,
    /// List the reimage requests
    Reimages,
    /// Show all about one request: its dossier, engine calls and decisions
    Show {
        /// Request
        id: String,
    },
    /// Print the dossier that a host sent with its request, as JSON
    Evidence {
        /// Request
        id: String,
    },
    /// Approve a request
    Approve {
        /// Request
        id: String,
        /// Call the engine once more for a request that is held because its engine's result was lost
        #[arg(long)]
        dispatch_again: bool,
    },
    /// Deny a request
    Deny {
        /// Request
        id: String,
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// How long the host may not ask again
        #[arg(long = "for", value_name = "SPAN", default_value = "1h", value_parser = span)]
        for_span: Duration,
    },
    /// Free the slot of a request that went wrong, or give up one whose engine's result was lost
    Release {
        /// Request
        id: String,
    },
    /// Show the audit log
    Audit {
        /// Check the whole chain of hashes instead; exit 1 when it is broken
        #[arg(long)]
        verify: bool,
        /// How many of the newest entries
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// Print the OpenAPI document of the protocol
    Openapi,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a join token and print it once
    Create {
        /// Group that the hosts land in
        #[arg(long)]
        group: String,
        /// Bind it to one host, which may then enrol anew under its name
        #[arg(long, value_name = "HOST")]
        host: Option<HostId>,
        /// How many hosts may use it
        #[arg(long, value_name = "N", default_value_t = 1)]
        uses: u64,
        /// How long it lives
        #[arg(long, value_name = "SPAN", default_value = "1h", value_parser = span)]
        expires: Duration,
    },
}

fn span(text: &str) -> Result<Duration, String> {
    config::parse_duration(text).ok_or_else(|| "expected a number and a unit, such as 90s, 10m or 1h".to_owned())
}

/// Runs a command.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let out = Out { json: cli.json };
    let (config, control) = (cli.config, cli.control);
    let ask = async |request: ControlRequest| -> anyhow::Result<Value> {
        let socket = match control {
            Some(path) => path,
            None => configured_socket(&config)?,
        };
        Ok(control::call(&socket, &request).await?)
    };
    match cli.command {
        Command::Serve { insecure_loopback } => return serve(&config, insecure_loopback).await,
        Command::Openapi => out.text(&format!("{:#}\n", rekindle_protocol::openapi()))?,
        Command::Token { command: TokenCommand::Create { group, host, uses, expires } } => {
            let answer = ask(ControlRequest::CreateToken(NewToken { group, host, uses, expires })).await?;
            out.answer(None, answer, |created: TokenCreated| {
                // The token alone on standard output, so that it can be piped; its end on standard error.
                eprintln!("valid until {}; it is not shown again", short(created.expires_at));
                format!("{}\n", created.token.reveal())
            })?;
        }
        Command::Hosts => {
            out.answer(Some("hosts"), ask(ControlRequest::Hosts).await?, |hosts: Vec<HostSummary>| hosts_table(&hosts))?
        }
        Command::Reimages => {
            out.answer(Some("reimages"), ask(ControlRequest::Reimages).await?, |all: Vec<ReimageSummary>| {
                reimages_table(&all)
            })?;
        }
        Command::Show { id } => {
            out.answer(None, ask(ControlRequest::Show { id }).await?, |detail: ReimageDetail| show(&detail))?;
        }
        Command::Evidence { id } => {
            let detail: ReimageDetail = serde_json::from_value(ask(ControlRequest::Show { id: id.clone() }).await?)
                .context("the hub's answer does not fit: is it of another version?")?;
            let dossier = detail.evidence.with_context(|| format!("no dossier was sent for reimage `{id}` (yet)"))?;
            out.answer(Some("evidence"), dossier, |dossier: Value| format!("{dossier:#}\n"))?;
        }
        Command::Approve { id, dispatch_again: false } => out.status(ask(ControlRequest::Approve { id }).await?)?,
        Command::Approve { id, dispatch_again: true } => {
            out.status(ask(ControlRequest::DispatchAgain { id }).await?)?
        }
        Command::Deny { id, reason, for_span } => {
            out.status(ask(ControlRequest::Deny { id, reason, for_span }).await?)?;
        }
        Command::Release { id } => out.status(ask(ControlRequest::Release { id }).await?)?,
        Command::Audit { verify: false, limit } => {
            out.answer(Some("entries"), ask(ControlRequest::Audit { limit }).await?, |all: Vec<AuditEntry>| {
                audit_lines(&all)
            })?;
        }
        Command::Audit { verify: true, limit: _ } => {
            let answer = ask(ControlRequest::VerifyAudit).await?;
            let check: AuditCheck = serde_json::from_value(answer.clone()).context("the hub's answer does not fit")?;
            out.answer(None, answer, |check: AuditCheck| match check.broken {
                None => format!("{} entries, all in order; the last hash is {}\n", check.n_entries, check.head),
                Some(how) => format!("BROKEN after {} good entries: {how}\n", check.n_entries),
            })?;
            return Ok(if check.broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the control socket that a configuration names; the usual one where there is no configuration.
fn configured_socket(config: &Path) -> anyhow::Result<PathBuf> {
    match config::load(config) {
        Ok(options) => Ok(options.control.unwrap_or_else(|| DEFAULT_CONTROL.into())),
        Err(HubError::ReadConfig { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(DEFAULT_CONTROL.into())
        }
        Err(error) => Err(error).context("cannot tell where the hub's control socket is\nhint: name it with --control"),
    }
}

async fn serve(path: &Path, insecure_loopback: bool) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(tracing::Level::INFO)
        .init();
    let options = config::load(path)?;
    match (&options.tls, insecure_loopback) {
        (None, false) => {
            return Err(anyhow!(
                "`{}` names no `certificate` and `key`\nhint: name both, or try it out on a loopback address with \
                 --insecure-loopback",
                path.display()
            ));
        }
        (Some(_), true) => {
            return Err(anyhow!("--insecure-loopback contradicts `certificate` in `{}`", path.display()));
        }
        (Some(_), false) | (None, true) => {}
    }
    // Before anything starts, so that no signal is missed.
    let mut terminate = signal(SignalKind::terminate()).context("cannot await SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot await SIGINT")?;
    let mut running = rekindle_hub::start(options).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = running.died() => {
            running.stop().await;
            return Err(error.into());
        }
    }
    tracing::info!("stopping");
    running.stop().await;
    Ok(ExitCode::SUCCESS)
}

struct Out {
    json: bool,
}

impl Out {
    fn text(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // The reader of the pipe has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => result.context("cannot write to standard output"),
        }
    }

    /// Prints an answer: in JSON under a key of its own, or, without one, its keys beside the `version`.
    fn answer<T: DeserializeOwned>(
        &self,
        key: Option<&str>,
        answer: Value,
        render: impl FnOnce(T) -> String,
    ) -> anyhow::Result<()> {
        if self.json {
            let mut object = json!({ "version": 1 });
            match (object.as_object_mut(), key, answer) {
                (Some(object), None, Value::Object(answer)) => object.extend(answer),
                (Some(object), key, answer) => {
                    object.insert(key.unwrap_or("result").to_owned(), answer);
                }
                (None, ..) => {}
            }
            return self.text(&format!("{object:#}\n"));
        }
        let value =
            serde_json::from_value(answer).context("the hub's answer does not fit: is it of another version?")?;
        self.text(&render(value))
    }

    fn status(&self, answer: Value) -> anyhow::Result<()> {
        self.answer(None, answer, |status: ReimageStatus| {
            let next = match status.state {
                ReimageState::AwaitingReady => " (the host drains, then the engine is called)",
                ReimageState::Failed | ReimageState::Quarantined => {
                    " (the slot is free; a host without an identity enrols with `rekindle-hub token create --host`)"
                }
                ReimageState::Requested
                | ReimageState::Held
                | ReimageState::Approved
                | ReimageState::Dispatching
                | ReimageState::EngineRunning
                | ReimageState::AwaitingCheckin
                | ReimageState::Verifying
                | ReimageState::Succeeded
                | ReimageState::Denied
                | ReimageState::Cancelled
                | ReimageState::Expired
                | ReimageState::Unknown => "",
            };
            format!("{} is {}{next}\n", status.id, status.state.word())
        })
    }
}

/// Returns a time to the second.
fn short(time: Timestamp) -> String {
    time.round(Unit::Second).unwrap_or(time).to_string()
}

fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths = header.iter().map(|title| title.len()).collect::<Vec<_>>();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
    text
}

fn hosts_table(hosts: &[HostSummary]) -> String {
    if hosts.is_empty() {
        return "no host has enrolled; make a join token with `rekindle-hub token create --group NAME`\n".to_owned();
    }
    let rows = hosts.iter().map(|host| {
        vec![
            host.host_id.to_string(),
            host.group.clone(),
            host.incarnation.to_string(),
            host.health.map_or_else(|| "-".to_owned(), |health| word(&json!(health))),
            host.checked_in_at.map_or_else(|| "never".to_owned(), short),
            host.policy.as_deref().map_or_else(|| "-".to_owned(), |policy| policy.chars().take(12).collect()),
            host.failing.join(" "),
        ]
    });
    table(&["HOST", "GROUP", "INC", "HEALTH", "CHECKED IN", "POLICY", "FAILING"], &rows.collect::<Vec<_>>())
}

fn reimages_table(all: &[ReimageSummary]) -> String {
    if all.is_empty() {
        return "no host has asked to be reimaged\n".to_owned();
    }
    let rows = all.iter().map(|reimage| {
        vec![
            reimage.id.to_string(),
            reimage.host_id.to_string(),
            reimage.incarnation.to_string(),
            reimage.state.word().to_owned(),
            reimage.why.word().to_owned(),
            short(reimage.requested_at),
            reimage.summary.chars().take(60).collect(),
        ]
    });
    table(&["REIMAGE", "HOST", "INC", "STATE", "WHY", "REQUESTED", "SUMMARY"], &rows.collect::<Vec<_>>())
}

fn show(detail: &ReimageDetail) -> String {
    let reimage = &detail.reimage;
    let mut text = format!(
        "{} is {}\n  host       {} (group {}, incarnation {})\n  why        {}: {}\n  requested  {}\n",
        reimage.id,
        reimage.state.word(),
        reimage.host_id,
        reimage.group,
        reimage.incarnation,
        reimage.why.word(),
        reimage.summary,
        short(reimage.requested_at)
    );
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            writeln!(text, "  {name:<9}  {value}").expect("writing to a string succeeds");
        }
    };
    line("reason", reimage.reason.clone());
    line("policy", reimage.policy.clone());
    line("grant", reimage.grant_ends.map(|ends| format!("ends {}", short(ends))));
    line("dispatch", reimage.dispatched_at.map(short));
    line("released", reimage.released_at.map(short));
    for call in &detail.engine_calls {
        let outcome = call.outcome.as_deref().unwrap_or("no result on record");
        line("engine", Some(format!("{} at {}: {outcome}", call.engine, short(call.intent_at))));
        for output in call.output.iter().flat_map(|output| output.lines()) {
            line("", Some(output.to_owned()));
        }
    }
    text.push_str("\nDecisions\n");
    text.push_str(&audit_lines(&detail.audit));
    match &detail.evidence {
        None => text.push_str("\nNo dossier was sent.\n"),
        Some(dossier) => {
            text.push_str("\nDossier\n");
            text.push_str(&format!("{dossier:#}\n"));
        }
    }
    text
}

fn audit_lines(all: &[AuditEntry]) -> String {
    let rows = all.iter().map(|entry| {
        let reason = entry.detail.get("reason").and_then(Value::as_str).unwrap_or_default();
        vec![
            entry.seq.to_string(),
            short(entry.at),
            entry.actor.clone(),
            entry.action.clone(),
            entry.subject.clone(),
            reason.to_owned(),
        ]
    });
    table(&["SEQ", "AT", "WHO", "WHAT", "ABOUT", "REASON"], &rows.collect::<Vec<_>>())
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}
