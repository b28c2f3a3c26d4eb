//! Verified bytes, facts and roles to [`DesiredState`]: names resolved, everything contradictory refused, in one run.
//!
//! A pure function: the same inputs give the same state in the same order. It never looks at the host; what the host has
//! comes in as a [`HostView`]. Nothing here is quadratic in the number of resources.
//!
//! # Language rules decided here
//!
//! - Files: `policy.toml`, then what it includes, depth first; a file included twice counts once. Included files that do not
//!   count on this host are still checked for syntax, keys and types.
//! - `[policy]` and `[vars]` stand in policy.toml alone. A table in `[vars]` holds the overrides of the role of that name; with
//!   several roles the later one in the host's list wins.
//! - In `file`, `directory` and `setting`, `owner` is the owner on disk; elsewhere it says who answers for the resource.
//! - A resource whose `when` is false does not exist here, and a reference to it is an error.
//!
//! # Automatic edges
//!
//! Each yields to an explicit `requires` in the other direction.
//!
//! - a path: its nearest declared ancestor directory, its owner, its group, and a declared package whose own directory it is
//!   in (`/etc/NAME`, `/etc/default/NAME`, `/usr/share/NAME`, `/usr/lib/NAME`, `/var/lib/NAME`, `/var/log/NAME`, `/opt/NAME`)
//! - a path and a user's home: the declared mount that they are in; a mount: the declared mount and directory that it is below
//! - a user: its declared groups
//! - a service: the package of its name, and everything that restarts or reloads it
//! - a command: what it is owed by, the declared files that its program and its guards are, the user that it runs as; a check
//!   the same; a file that names a validator: the declared file that the validator is
//! - removals the other way round: a directory after what is removed from it, a group after the user of its name,
//!   a package after its service is stopped

pub(super) mod beneath;
mod check;
mod load;
mod lower;
mod order;
mod shared;

use super::DesiredState;
use super::diagnostic::{Diagnostic, Diagnostics, Place, Source};
use super::facts::{Facts, HostView};
use super::secret::Secrets;
pub use super::template::Traced;
use super::template::{Engine, Trace};
use super::trust::Verified;
use crate::resource::{Desired, Ensure, Resource};

/// What a policy is compiled for.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Facts of the host.
    pub facts: &'a Facts,
    /// Roles of the host, in the order of its configuration.
    pub roles: &'a [String],
    /// What the host has; `None` for a host that is not there, whose accounts and packages are then not judged.
    pub host: Option<&'a HostView>,
    /// How its secrets are read.
    pub secrets: &'a Secrets,
}

/// A compiled policy.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// What should be.
    pub state: DesiredState,
    /// What somebody should look at.
    pub warnings: Vec<Diagnostic>,
}

/// Compiles a policy for a host, or says everything that is wrong with it.
///
/// A policy with templates may need any amount of memory: [`compile_after`] is for one that nobody has tried out.
pub fn compile(verified: &Verified, inputs: &Inputs<'_>) -> Result<Compiled, Diagnostics> {
    compile_watched(verified, inputs, None, None)
}

/// As [`compile`], but has the compilation tried out before the first template or condition is looked at, if there is any. The same inputs
/// give the same result, so what ends there ends here.
pub fn compile_after(
    verified: &Verified,
    inputs: &Inputs<'_>,
    trial: &dyn Fn() -> Result<(), Diagnostics>,
) -> Result<Compiled, Diagnostics> {
    compile_watched(verified, inputs, Some(trial), None)
}

/// As [`compile`], and says what it looks at next: what a trial runs.
pub fn compile_traced(verified: &Verified, inputs: &Inputs<'_>, trace: fn(&Traced)) -> Result<Compiled, Diagnostics> {
    compile_watched(verified, inputs, None, Some(trace))
}

/// The refusal of a policy whose trial came to no end, while it looked at `last`; `how` reads after "it".
pub fn cut_short(verified: &Verified, last: Option<&Traced>, how: &str) -> Diagnostics {
    const HINT: &str = "make the template do less, or the policy smaller";
    let diagnostic = match last {
        None => Diagnostic::error("limit", format!("the policy cannot be compiled: it {how}")).hint(HINT),
        Some(last) => {
            let name =
                if last.what == "when" { "the condition".to_owned() } else { format!("the template `{}`", last.text) };
            let diagnostic = Diagnostic::error("limit", format!("{name} cannot be evaluated: it {how}")).hint(HINT);
            match verified.files().get(&last.file).and_then(|bytes| std::str::from_utf8(bytes).ok()) {
                Some(text) => diagnostic.at(Place::new(&Source::new(&last.file, text), last.start..last.end), ""),
                None => diagnostic,
            }
        }
    };
    Diagnostics::from(vec![diagnostic])
}

fn compile_watched(
    verified: &Verified,
    inputs: &Inputs<'_>,
    trial: Option<&dyn Fn() -> Result<(), Diagnostics>>,
    trace: Trace,
) -> Result<Compiled, Diagnostics> {
    let mut out = Diagnostics::default();
    let documents = load::parse(verified.files(), &mut out);
    if let Some(trial) = trial.filter(|_| load::evaluates(&documents)) {
        trial()?;
    }
    let vars = load::variables(&documents, inputs.roles, &mut out);
    let mut engine = Engine::new(verified.shared_files(), inputs, vars, trace);
    let loaded = load::declarations(&documents, &mut engine, &mut out);

    let mut shared = shared::Shared::default();
    let mut resources = Vec::with_capacity(loaded.active.len());
    for declaration in &loaded.active {
        resources.push(lower::lower(declaration, verified.files(), &mut engine, &mut shared, &mut out));
    }
    let graph = check::Graph::new(&loaded, &resources, inputs.host);
    check::check(&graph, &mut out);
    let edges = order::edges(&graph, &mut out);
    let order = order::sort(&graph, &edges, &mut out);
    if out.has_errors() {
        return Err(out);
    }

    let mut validators = std::collections::BTreeMap::new();
    let mut sorted: Vec<Resource> = Vec::with_capacity(order.len());
    let mut slots: Vec<Option<lower::Lowered>> = resources.into_iter().collect();
    for i in order {
        // Without errors every declaration was lowered, and the order names each once.
        let (Some(lowered), Some(declaration)) = (slots.get_mut(i).and_then(Option::take), loaded.active.get(i)) else {
            continue;
        };
        let requires = edges.requires(i).filter_map(|j| loaded.active.get(j)).map(|d| d.id.clone()).collect();
        validators.extend(lowered.validate.map(|argv| (declaration.id.clone(), argv)));
        sorted.push(Resource {
            id: declaration.id.clone(),
            desired: lowered.desired,
            requires,
            notifies: lowered.notifies.into_boxed_slice(),
            on_drift: lowered.on_drift,
            notes: lowered.notes,
            source: declaration.name.location(),
        });
    }
    beneath::declare(&mut sorted);
    let state = DesiredState::new(verified.revision().clone(), loaded.policy_name, sorted)
        .with_orphans(loaded.orphans)
        .with_lock_out(loaded.lock_out)
        .with_validators(validators)
        .with_mask(engine.mask());
    Ok(Compiled { state, warnings: out.into_vec() })
}

/// A warning for each repository whose key stops signing soon. Apart from compiling, which knows no time.
pub fn expiring_keys(state: &DesiredState, now: jiff::Timestamp) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for resource in state.resources() {
        let Desired::Repository(repository) = &resource.desired else { continue };
        let Ensure::Present(spec) = &repository.ensure else { continue };
        if let Some(expires) = spec.key.expires_soon(now) {
            let place = &resource.source;
            let title = format!("the key of `{}` ({}:{}) expires on {expires:.0}", resource.id, place.file, place.line);
            warnings
                .push(Diagnostic::warning("key-expires", title).hint("put the new key into the policy before that"));
        }
    }
    warnings
}
