//! Whatever another process does to a declared resource is put back within a second, recorded with its difference, and
//! alerted once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rekindle_tests::product::{Entry, Estate, PATIENCE, Settings, alerted, event, resources};
use rekindle_tests::{Machine, TestPackage, wait_for};

/// From the end of the command that drifts to the state that is declared.
const LIMIT: Duration = Duration::from_secs(1);

const POLICY: &str = r#"
[policy]
name = "guarded"

[directory."/etc/app"]
mode = "0755"

[file."/etc/app/guarded"]
content = "one\ntwo\nthree\n"
owner = "daemon"
group = "daemon"
mode = "0640"

[group.ops]
gid = 2002

[user.deploy]
uid = 2001
groups = ["ops"]
shell = "/bin/bash"
home = "/home/deploy"
password = { locked = true }

[package]
rk-hello = {}
rk-tool = {}

[service.rk-hello]
enabled = true
state = "running"
requires = ["package[rk-hello]"]
"#;

/// A drift: what another process does, what it is done to, and how to see that it is undone.
struct Drift {
    name: &'static str,
    script: &'static str,
    resource: &'static str,
    check: Check,
}

enum Check {
    /// The declared file is as declared: kind, content, owner and mode.
    File,
    /// A script inside succeeds.
    Script(&'static str),
}

const FILE: &str = "file[/etc/app/guarded]";
const USER: &str = "user[deploy]";
const PACKAGE: &str = "package[rk-tool]";
const SERVICE: &str = "service[rk-hello]";

const DRIFTS: &[Drift] = &[
    Drift { name: "edit in place", script: "echo evil >> /etc/app/guarded", resource: FILE, check: Check::File },
    Drift { name: "truncate", script: ": > /etc/app/guarded", resource: FILE, check: Check::File },
    Drift { name: "sed -i", script: "sed -i s/two/evil/ /etc/app/guarded", resource: FILE, check: Check::File },
    Drift {
        name: "rename over",
        script: "echo evil > /etc/app/.new && mv /etc/app/.new /etc/app/guarded",
        resource: FILE,
        check: Check::File,
    },
    Drift { name: "chmod", script: "chmod 0666 /etc/app/guarded", resource: FILE, check: Check::File },
    Drift { name: "chown", script: "chown nobody /etc/app/guarded", resource: FILE, check: Check::File },
    Drift { name: "delete", script: "rm /etc/app/guarded", resource: FILE, check: Check::File },
    Drift {
        name: "replace by symlink",
        script: "cp -p /etc/app/guarded /tmp/elsewhere && ln -sf /tmp/elsewhere /etc/app/guarded",
        resource: FILE,
        check: Check::File,
    },
    // The file is back before its directory can be removed, and then the command fails.
    Drift { name: "rm -rf of the parent", script: "rm -rf /etc/app || true", resource: FILE, check: Check::File },
    Drift { name: "mv of the parent", script: "mv /etc/app /etc/elsewhere", resource: FILE, check: Check::File },
    Drift {
        name: "after the parent came back",
        script: "echo evil >> /etc/app/guarded",
        resource: FILE,
        check: Check::File,
    },
    Drift {
        name: "usermod -s",
        script: "usermod -s /bin/sh deploy",
        resource: USER,
        check: Check::Script("grep -q '^deploy:.*:/bin/bash$' /etc/passwd"),
    },
    Drift {
        name: "userdel",
        script: "userdel deploy",
        resource: USER,
        check: Check::Script(
            "grep -q '^deploy:[^:]*:2001:.*:/bin/bash$' /etc/passwd && grep -q '^ops:.*deploy' /etc/group",
        ),
    },
    Drift {
        name: "removal from a group",
        script: "gpasswd -d deploy ops",
        resource: USER,
        check: Check::Script("grep -q '^ops:.*deploy' /etc/group"),
    },
    Drift {
        name: "apt-get remove",
        script: "apt-get -qq -y remove rk-tool",
        resource: PACKAGE,
        check: Check::Script("dpkg-query -W -f '${db:Status-Status}' rk-tool | grep -qx installed"),
    },
    Drift {
        name: "systemctl stop",
        script: "systemctl stop rk-hello",
        resource: SERVICE,
        check: Check::Script("systemctl is-active -q rk-hello"),
    },
    Drift {
        name: "systemctl disable",
        script: "systemctl -q disable rk-hello",
        resource: SERVICE,
        check: Check::Script("systemctl is-enabled -q rk-hello"),
    },
    Drift {
        name: "systemctl mask",
        script: "systemctl -q mask rk-hello",
        resource: SERVICE,
        check: Check::Script("test \"$(systemctl is-enabled rk-hello)\" = enabled && systemctl is-active -q rk-hello"),
    },
];

#[test]
fn every_drift_is_repaired_within_a_second_recorded_and_alerted_once() -> Result<()> {
    let estate = Estate::new()?;
    estate.apt.add(&TestPackage::with_service("rk-hello", "1.0"))?;
    estate.apt.add(&TestPackage::new("rk-tool", "1.0"))?;
    estate.apt.publish_to(&estate.machine)?;
    estate.git.write("policy.toml", POLICY)?;
    let revision = estate.git.commit("Guard", rekindle_tests::Signature::Trusted)?;
    estate.configure(&Settings::default())?;
    estate.start()?;
    estate.wait_converged(&revision)?;

    let mut seen = estate.history()?.last().map_or(0, |entry| entry.id);
    let (mut slow, mut repairs) = (Vec::new(), Vec::new());
    for drift in DRIFTS {
        ensure!(holds(&estate.machine, drift)?, "before `{}` the host is not as declared", drift.name);
        let (latency, entry) = repaired(&estate, drift, &mut seen).with_context(|| format!("drift: {}", drift.name))?;
        println!("{:<28} repaired in {latency:>8.1?}", drift.name);
        if latency > LIMIT {
            slow.push(format!("{}: {latency:?}", drift.name));
        }
        repairs.push((drift, entry));
    }
    ensure!(slow.is_empty(), "repaired too late: {slow:?}");

    for (drift, entry) in &repairs {
        estate.wait_alert(entry)?;
        let alerts =
            estate.receiver.messages().into_iter().filter(|message| alerted(&message.body).contains(&entry.id));
        let n_alerts = alerts.count();
        ensure!(n_alerts == 1, "`{}` was alerted {n_alerts} times instead of once", drift.name);
    }
    // Nothing that was told is untrue: every alert of a repair names repairs in the history, and every repair is told once.
    let history = estate.history()?;
    let told: Vec<i64> = estate
        .receiver
        .messages()
        .iter()
        .filter(|message| event(&message.body) == "drift.repaired")
        .flat_map(|message| alerted(&message.body))
        .collect();
    for entry in history.iter().filter(|entry| entry.is_repair()) {
        let times = told.iter().filter(|&&id| id == entry.id).count();
        ensure!(times == 1, "{entry:?} was told {times} times instead of once");
    }
    for message in estate.receiver.messages() {
        ensure!(message.verified == Ok(()), "{message:?}");
        ensure!(event(&message.body) != "convergence.failed", "something failed on the way: {}", message.body);
    }
    let failed: Vec<&Entry> = history.iter().filter(|entry| entry.outcome != "changed").collect();
    ensure!(failed.is_empty(), "some steps failed: {failed:#?}");
    Ok(())
}

/// Drifts, waits for the repair, and returns how long it took and its entry in the history.
fn repaired(estate: &Estate, drift: &Drift, seen: &mut i64) -> Result<(Duration, Entry)> {
    estate.machine.sh(drift.script)?;
    let drifted = Instant::now();
    wait_for("the repair", PATIENCE, || Ok(holds(&estate.machine, drift)?.then_some(())))?;
    let latency = drifted.elapsed();
    let entry = wait_for("its entry in the history", PATIENCE, || {
        let history = estate.history()?;
        let found =
            history.iter().find(|entry| entry.id > *seen && entry.resource == drift.resource && entry.is_repair());
        Ok(found.cloned())
    })?;
    ensure!(!entry.changes.is_empty(), "no difference in {entry:?}");
    if drift.name == "sed -i" {
        let text = serde_json::to_string(&entry.changes)?;
        ensure!(text.contains("-evil") && text.contains("+two"), "no readable difference: {text}");
    }
    // Repairs of other resources that the same command touched end before the next drift begins.
    wait_for("everything to be in sync", PATIENCE, || {
        let status = estate.status()?;
        let idle = status["activity"] == "" && status["out_of_sync"].as_object().is_some_and(serde_json::Map::is_empty);
        Ok(idle.then_some(()))
    })?;
    *seen = estate.history()?.last().map_or(*seen, |entry| entry.id);
    Ok((latency, entry))
}

/// Whether what the drift touches is as declared.
fn holds(machine: &Machine, drift: &Drift) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    match drift.check {
        Check::Script(script) => Ok(machine.shell(script)?.code == Some(0)),
        Check::File => {
            let path = machine.path("/etc/app/guarded");
            let Ok(metadata) = path.symlink_metadata() else { return Ok(false) };
            let content = std::fs::read(&path).unwrap_or_default();
            Ok(metadata.is_file()
                && content == b"one\ntwo\nthree\n"
                && metadata.mode() & 0o7777 == 0o640
                && (metadata.uid(), metadata.gid()) == (1, 1))
        }
    }
}

#[test]
fn a_drift_that_is_only_to_be_reported_stays_and_is_told_once() -> Result<()> {
    let estate = Estate::new()?;
    let policy =
        "[policy]\nname = \"reported\"\n[file.\"/etc/reported\"]\ncontent = \"mine\\n\"\non_drift = \"report\"\n";
    estate.git.write("policy.toml", policy)?;
    let revision = estate.git.commit("Report", rekindle_tests::Signature::Trusted)?;
    estate.configure(&Settings::default())?;
    estate.start()?;
    estate.wait_converged(&revision)?;
    estate.machine.sh("echo theirs > /etc/reported")?;
    let told = estate.receiver.wait_for("the report", PATIENCE, |message| {
        event(&message.body) == "drift.reported" && resources(&message.body).contains(&"file[/etc/reported]")
    })?;
    ensure!(told.verified == Ok(()));
    ensure!(told.body.to_string().contains("+mine"), "the difference is told: {}", told.body);
    ensure!(estate.machine.read("/etc/reported")? == "theirs\n", "it was to be left alone");
    Ok(())
}
