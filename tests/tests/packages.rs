//! The packages themselves: what installing, upgrading, removing and purging them does to a booted host.
//!
//! What the installed agent then does is the business of the other tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use rekindle_tests::product::{AGENT, COURIER, Estate, PATIENCE, Settings};
use rekindle_tests::{Invocation, Machine, Signature, put, require, wait_for};

/// The endpoint's unit.
const HUB: &str = "rekindle-hub.service";

/// Where the packages are put on the host.
const PACKAGES: &str = "/srv/packages";

/// Enough for a restart that nobody waits for.
const SOON: Duration = Duration::from_secs(20);

/// A configuration that is right and asks for nothing.
const CONFIGURATION: &str = "mode = \"noop\"\n";

/// Builds packages of two revisions with the same programs, so that upgrades can be seen; once for all tests of a run.
fn build() -> Result<PathBuf> {
    require()?;
    let shared = workspace().join("target/tests/revisions");
    std::fs::create_dir_all(&shared).with_context(|| format!("cannot make `{}`", shared.display()))?;
    let shared = shared.canonicalize().context("cannot resolve the directory of packages")?;
    let lock = std::fs::File::options().create(true).truncate(false).write(true).open(shared.with_extension("lock"));
    let _lock = Flock::lock(lock.context("cannot open the lock")?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("cannot lock the directory of packages")?;

    // Each test is a process of its own under one runner, and a thread under the other.
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    let stamp = shared.with_extension("run");
    if std::fs::read_to_string(&stamp).is_ok_and(|built| built == run) {
        return Ok(shared);
    }
    for old in listed(&shared)? {
        std::fs::remove_file(&old).with_context(|| format!("cannot remove `{}`", old.display()))?;
    }
    for revision in ["1", "2"] {
        make(&shared, revision)?;
    }
    put(&stamp, run)?;
    Ok(shared)
}

/// `REKINDLE_TEST_BINARIES` names a directory of programs to package instead of building them.
fn make(out: &Path, revision: &str) -> Result<()> {
    let from = match (std::env::var("REKINDLE_TEST_BINARIES"), std::env::var("REKINDLE_TEST_PROFILE")) {
        (Ok(binaries), _) => ["--binaries".to_owned(), binaries],
        (Err(_), Ok(profile)) => ["--profile".to_owned(), profile],
        (Err(_), Err(_)) => ["--profile".to_owned(), "dev".to_owned()],
    };
    Invocation::new("packaging/build").arg(out).args(from).args(["--revision", revision]).dir(workspace()).ok()?;
    Ok(())
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Boots a host that has the packages below [`PACKAGES`].
fn host_with_packages() -> Result<Machine> {
    let packages = build()?;
    let machine = Machine::boot()?;
    let inside = machine.path(PACKAGES);
    std::fs::create_dir_all(&inside).context("cannot make the directory of packages")?;
    for package in listed(&packages)? {
        let name = package.file_name().context("a package has a file name")?;
        std::fs::copy(&package, inside.join(name)).with_context(|| format!("cannot copy `{}`", package.display()))?;
    }
    Ok(machine)
}

fn listed(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("cannot list `{}`", dir.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    Ok(files)
}

fn apt(machine: &Machine, verb: &str, packages: &str) -> Result<()> {
    machine.sh(&format!("cd {PACKAGES} && apt-get -qy {verb} {packages}"))?;
    Ok(())
}

fn enabled(machine: &Machine, unit: &str) -> Result<String> {
    Ok(machine.sh(&format!("systemctl is-enabled {unit} || true"))?.trim().to_owned())
}

fn nothing_failed(machine: &Machine) -> Result<()> {
    let failed = machine.sh("systemctl --failed --plain --no-legend")?;
    ensure!(failed.trim().is_empty(), "units failed: {failed}");
    Ok(())
}

fn nothing_runs(machine: &Machine, units: &[&str]) -> Result<()> {
    for unit in units {
        ensure!(!machine.is_active(unit)?, "{unit} runs");
    }
    nothing_failed(machine)
}

/// Configures the agent and starts both services, as its documentation says.
fn start(machine: &Machine) -> Result<()> {
    machine.put("/etc/rekindle/agent.toml", CONFIGURATION)?;
    machine.run("systemctl").args(["start", AGENT, COURIER]).ok()?;
    for unit in [AGENT, COURIER] {
        ensure!(machine.is_active(unit)?, "{unit} does not run");
    }
    Ok(())
}

/// Does something that must replace the processes of both services and leave them running.
fn restarts(machine: &Machine, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = [machine.main_pid(AGENT)?, machine.main_pid(COURIER)?];
    act()?;
    for (unit, old) in [AGENT, COURIER].into_iter().zip(before) {
        wait_for(&format!("{unit} to run anew"), SOON, || {
            let pid = machine.main_pid(unit)?;
            Ok((pid.is_some() && pid != old && machine.is_active(unit)?).then_some(()))
        })?;
    }
    nothing_failed(machine)
}

#[test]
fn the_deb_is_installed_upgraded_removed_and_purged() -> Result<()> {
    let machine = host_with_packages()?;

    // Without configuration nothing starts, and nothing fails.
    apt(&machine, "install", "./rekindle_*-1_*.deb ./rekindle-hub_*-1_*.deb")?;
    nothing_runs(&machine, &[AGENT, COURIER, HUB])?;
    for unit in [AGENT, COURIER, HUB] {
        ensure!(enabled(&machine, unit)? == "enabled", "{unit} is not enabled");
    }
    // The boundary between the two services.
    for (path, expected) in [
        ("/var/lib/rekindle", "755 root:root"),
        ("/var/lib/rekindle/policy", "700 root:root"),
        ("/var/lib/rekindle/outbox", "770 root:rekindle"),
        ("/var/lib/rekindle/inbox", "750 rekindle:rekindle"),
        ("/var/lib/rekindle/courier", "700 rekindle:rekindle"),
        ("/run/rekindle", "755 root:root"),
        ("/etc/rekindle", "755 root:rekindle"),
        ("/usr/lib/rekindle/drain.d", "755 root:root"),
        ("/usr/bin/rekindle", "755 root:root"),
        ("/var/lib/rekindle-hub", "700 rekindle-hub:rekindle-hub"),
        ("/etc/rekindle-hub", "750 root:rekindle-hub"),
    ] {
        let found = machine.run("stat").args(["--format", "%a %U:%G", path]).ok()?;
        ensure!(found.trim() == expected, "`{path}` is {}, not {expected}", found.trim());
    }
    let units = [AGENT, COURIER, HUB];
    let verified = machine.run("systemd-analyze").args(["verify", "--man=no"]).args(units).output()?;
    ensure!(verified.code == Some(0) && verified.stderr.is_empty(), "{verified:?}");

    start(&machine)?;
    let journal = machine.run("journalctl").args(["--unit", AGENT, "--output", "cat"]).ok()?;
    ensure!(!journal.contains("lost"), "nothing was there before: {journal}");
    restarts(&machine, || apt(&machine, "install", "./rekindle_*-2_*.deb"))?;

    // What an administrator disabled stays so.
    machine.run("systemctl").args(["disable", "--now", "--quiet", COURIER]).ok()?;
    apt(&machine, "install --reinstall", "./rekindle_*-2_*.deb")?;
    ensure!(enabled(&machine, COURIER)? == "disabled" && !machine.is_active(COURIER)?, "the courier is back");
    machine.run("systemctl").args(["enable", "--now", "--quiet", COURIER]).ok()?;

    // Removing stops and keeps; installing again goes on from there.
    apt(&machine, "remove", "rekindle")?;
    nothing_runs(&machine, &[AGENT, COURIER])?;
    ensure!(machine.read("/etc/rekindle/agent.toml")? == CONFIGURATION, "the configuration is gone");
    ensure!(machine.path("/var/lib/rekindle").exists(), "the state is gone");
    apt(&machine, "install", "./rekindle_*-2_*.deb")?;
    for unit in [AGENT, COURIER] {
        ensure!(machine.is_active(unit)?, "{unit} did not come back");
    }

    // Purging leaves nothing but the users, whose numbers must not be given to others.
    apt(&machine, "purge", "rekindle rekindle-hub")?;
    let left = machine
        .sh(&format!("find / -xdev -name '*rekindle*' -not -path '{PACKAGES}/*'; ls -d /run/rekindle* || true"))?;
    ensure!(left.trim().is_empty(), "purging left: {left}");
    nothing_failed(&machine)
}

#[test]
fn a_wrong_configuration_is_refused_in_words_and_breaks_no_package() -> Result<()> {
    let machine = host_with_packages()?;
    machine.put("/etc/rekindle/agent.toml", "mod = \"noop\"\n")?;
    apt(&machine, "install", "./rekindle_*-1_*.deb")?;
    ensure!(!machine.is_active(AGENT)?, "the agent runs with a configuration that it cannot read");
    wait_for("the agent to say what is wrong", SOON, || {
        let journal = machine.journal(AGENT)?;
        Ok((journal.contains("/etc/rekindle/agent.toml") && journal.contains("mod")).then_some(()))
    })?;
    apt(&machine, "install", "./rekindle_*-2_*.deb")?;
    // Mended, it starts by itself: a start limit would have left the host without its guard.
    machine.put("/etc/rekindle/agent.toml", CONFIGURATION)?;
    wait_for("the agent to start with the mended configuration", SOON, || Ok(machine.is_active(AGENT)?.then_some(())))
}

#[test]
fn the_example_configuration_is_valid() -> Result<()> {
    let machine = host_with_packages()?;
    apt(&machine, "install", "./rekindle_*-1_*.deb")?;
    machine.sh(
        "cp /usr/share/doc/rekindle/agent.toml.example /etc/rekindle/agent.toml
         touch /etc/rekindle/allowed_signers
         rekindle agent --check-config
         rekindle courier --check-config
         # With everything in it that is commented out, too.
         sed -i 's/^# \\([a-z_]* *=\\|\\[\\)/\\1/' /etc/rekindle/agent.toml
         cd /etc/rekindle && touch git-ca.pem git-token git-key git-known-hosts join-token hub-ca.pem alerts-ca.pem webhook-secret
         chmod 0640 git-token git-key join-token webhook-secret && chgrp rekindle git-token git-key join-token webhook-secret
         rekindle agent --check-config",
    )?;
    Ok(())
}

#[test]
fn the_policy_of_the_readme_is_valid() -> Result<()> {
    let readme = std::fs::read_to_string(workspace().join("README.md")).context("no README.md")?;
    let (_, rest) = readme.split_once("cat > policy.toml <<'END'\n").context("README.md writes a policy")?;
    let (policy, _) = rest.split_once("END\n").context("the policy ends")?;
    let machine = host_with_packages()?;
    apt(&machine, "install", "./rekindle_*-1_*.deb")?;
    machine.put("/srv/policy/policy.toml", policy)?;
    machine.run("rekindle").args(["check", "/srv/policy"]).ok()?;
    Ok(())
}

#[test]
fn an_upgrade_that_the_policy_asks_for_does_not_cut_itself_off() -> Result<()> {
    let estate = Estate::new()?;
    let machine = &estate.machine;
    let next = format!("{}-2", env!("CARGO_PKG_VERSION"));
    let is_next = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("rekindle_{next}_")) && name.ends_with(".deb")
    };
    let package = listed(&build()?)?.into_iter().find(is_next).context("no package of the second revision")?;
    estate.apt.add_file(&package)?;
    estate.apt.publish_to(machine)?;
    estate.git.write("policy.toml", "[policy]\nname = \"test\"\n[file.\"/etc/first\"]\ncontent = \"first\\n\"\n")?;
    let first = estate.git.commit("Start", Signature::Trusted)?;
    estate.configure(&Settings::default())?;
    estate.start()?;
    estate.wait_converged(&first)?;

    restarts(machine, || {
        let policy = format!(
            "[policy]\nname = \"test\"\n[package]\nrekindle = {{ version = \"{next}\" }}\n\
             [file.\"/etc/second\"]\ncontent = \"second\\n\"\nrequires = [\"package[rekindle]\"]\n"
        );
        estate.git.write("policy.toml", &policy)?;
        let second = estate.push("Upgrade the agent")?;
        wait_for("the upgrade", PATIENCE, || {
            let installed = machine.sh("dpkg-query -W -f '${db:Status-Abbrev}${Version}' rekindle")?;
            Ok((installed == format!("ii {next}")).then_some(()))
        })?;
        estate.wait_converged(&second).map(drop)
    })?;
    ensure!(machine.read("/etc/second")? == "second\n", "what came after the upgrade was not done");
    ensure!(machine.sh("dpkg --audit")?.is_empty(), "dpkg was cut off");
    let pid = machine.main_pid(AGENT)?.context("the agent has a process")?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    ensure!(!program.to_string_lossy().ends_with("(deleted)"), "the old program still runs");
    Ok(())
}

#[test]
fn the_services_are_confined_as_their_units_say() -> Result<()> {
    let machine = host_with_packages()?;
    apt(&machine, "install", "./rekindle_*-1_*.deb")?;
    start(&machine)?;
    let status = |unit: &str| -> Result<String> {
        let pid = machine.main_pid(unit)?.with_context(|| format!("{unit} has no process"))?;
        Ok(std::fs::read_to_string(format!("/proc/{pid}/status"))?)
    };
    let field = |text: &str, name: &str| -> String {
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    let (agent, courier) = (status(AGENT)?, status(COURIER)?);
    ensure!(field(&agent, "Uid:").split_whitespace().all(|uid| uid == "0"), "the agent is not root");
    ensure!(field(&agent, "Seccomp:") == "2" && field(&courier, "Seccomp:") == "2", "no filter of system calls");
    ensure!(!field(&courier, "Uid:").split_whitespace().any(|uid| uid == "0"), "the courier is root");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        ensure!(field(&courier, set) == "0000000000000000", "the courier has {set} {}", field(&courier, set));
    }
    ensure!(field(&courier, "NoNewPrivs:") == "1", "the courier could gain privileges");
    // What the agent observes is the host itself: it shares every namespace of its service manager.
    for namespace in ["mnt", "net", "uts", "ipc", "user", "cgroup"] {
        let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}"));
        let agent = machine.main_pid(AGENT)?.context("the agent has a process")?;
        let manager = machine.main_pid("systemd-journald.service")?.context("journald has a process")?;
        // journald has a mount namespace of its own on some systems: compare that one with the shell's.
        let host = match namespace {
            "mnt" => machine.sh("readlink /proc/self/ns/mnt")?.trim().to_owned(),
            _ => of(manager)?.display().to_string(),
        };
        ensure!(of(agent)?.display().to_string() == host, "the agent has a {namespace} namespace of its own");
    }
    Ok(())
}

#[test]
fn the_rpm_is_installed_upgraded_and_removed() -> Result<()> {
    let machine = host_with_packages()?;
    // The database of this rpm knows none of the host's libraries, hence --nodeps; the scripts are what is tested.
    let rpm = |verb: &str, files: &str| machine.sh(&format!("cd {PACKAGES} && rpm {verb} {files}"));

    rpm("--install --nodeps", "rekindle-0*-1.*.rpm rekindle-hub-0*-1.*.rpm")?;
    nothing_runs(&machine, &[AGENT, COURIER, HUB])?;
    for unit in [AGENT, COURIER, HUB] {
        ensure!(enabled(&machine, unit)? == "enabled", "{unit} is not enabled");
    }
    rpm("--verify --nodeps", "rekindle rekindle-hub")?;
    start(&machine)?;
    restarts(&machine, || rpm("--upgrade --nodeps", "rekindle-0*-2.*.rpm").map(drop))?;
    rpm("--erase", "rekindle rekindle-hub")?;
    nothing_runs(&machine, &[AGENT, COURIER])?;
    let left = machine.sh("find /usr /etc/systemd -name '*rekindle*'")?;
    ensure!(left.trim().is_empty(), "erasing left: {left}");
    ensure!(machine.read("/etc/rekindle/agent.toml")? == CONFIGURATION, "the configuration is gone");
    Ok(())
}

#[test]
fn the_same_commit_gives_the_same_packages_and_lintian_no_errors() -> Result<()> {
    let packages = build()?;
    let again = tempfile::Builder::new().prefix("rekindle-packages-").tempdir().context("no directory")?;
    make(again.path(), "1")?;
    let mut n_compared = 0;
    for file in listed(again.path())? {
        let name = file.file_name().context("a package has a file name")?;
        ensure!(std::fs::read(&file)? == std::fs::read(packages.join(name))?, "{name:?} differs");
        n_compared += 1;
    }
    ensure!(n_compared == 4, "{n_compared} packages instead of 4");

    for package in listed(again.path())?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "deb")) {
        Invocation::new("lintian").args(["--allow-root", "--fail-on", "error"]).arg(&package).ok()?;
    }
    Ok(())
}
