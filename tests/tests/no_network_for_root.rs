//! Root never has the network, and what has the network never has root: seen from outside, in /proc.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use rekindle_tests::TestPackage;
use rekindle_tests::product::{AGENT, COURIER, Estate, Settings};

/// The tables of sockets that can leave the host. `/proc/PID/net` has one file for each.
const NETWORK: &[&str] =
    &["tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6", "packet"];

/// The tables of sockets that cannot.
const LOCAL: &[&str] = &["unix", "netlink"];

const POLICY: &str = "[policy]\nname = \"quiet\"\n[package]\nrk-hello = {}\n\
    [service.rk-hello]\nstate = \"running\"\nrequires = [\"package[rk-hello]\"]\n\
    [user.deploy]\nshell = \"/bin/bash\"\n[file.\"/etc/kept\"]\ncontent = \"kept\\n\"\n";

#[test]
fn the_agent_has_no_network_socket_and_the_courier_no_privilege() -> Result<()> {
    let estate = Estate::new()?;
    estate.apt.add(&TestPackage::with_service("rk-hello", "1.0"))?;
    estate.apt.publish_to(&estate.machine)?;
    estate.git.write("policy.toml", POLICY)?;
    let revision = estate.git.commit("Quiet", rekindle_tests::Signature::Trusted)?;
    estate.configure(&Settings::default())?;
    estate.start()?;
    let agent = estate.machine.main_pid(AGENT)?.context("the agent runs")?;
    let courier = estate.machine.main_pid(COURIER)?.context("the courier runs")?;
    check_sockets(agent).context("while converging")?;
    estate.wait_converged(&revision)?;
    check_sockets(agent).context("when converged")?;
    estate.machine.sh("usermod -s /bin/sh deploy; echo evil > /etc/kept")?;
    rekindle_tests::wait_for("the repair", rekindle_tests::product::PATIENCE, || {
        check_sockets(agent).context("while repairing")?;
        Ok((estate.machine.read("/etc/kept")? == "kept\n").then_some(()))
    })?;
    ensure!(estate.machine.main_pid(AGENT)? == Some(agent), "the agent was restarted meanwhile");

    // The one has the rights and cannot make such a socket at all: a filter forbids it.
    let status = status(agent)?;
    ensure!(status["Uid"].split_whitespace().all(|uid| uid == "0"), "{status:?}");
    ensure!(status["Seccomp"] == "2", "the agent runs without a system call filter: {status:?}");
    let families = estate.machine.sh(&format!("systemctl show -p RestrictAddressFamilies --value {AGENT}"))?;
    ensure!(
        families.split_whitespace().collect::<BTreeSet<_>>() == BTreeSet::from(["AF_NETLINK", "AF_UNIX"]),
        "the agent may open {families}"
    );

    // The other has the network and no rights, and neither have its children.
    let rekindle = estate.machine.sh("id -u rekindle")?;
    let children = estate.machine.processes()?.into_iter().filter(|&(pid, _)| is_below(pid, courier));
    for pid in children.map(|(pid, _)| pid).chain([courier]) {
        // A child that has just ended has nothing any more.
        let Ok(status) = self::status(pid) else { continue };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            ensure!(u64::from_str_radix(&status[set], 16)? == 0, "{set} of the courier is {}", status[set]);
        }
        ensure!(status["NoNewPrivs"] == "1", "{status:?}");
        ensure!(status["Uid"].split_whitespace().all(|uid| uid == rekindle.trim() && uid != "0"), "{status:?}");
        ensure!(status["Gid"].split_whitespace().all(|gid| gid != "0"), "{status:?}");
    }
    // What the courier cannot read: the agent's record, its backups, the shadow file.
    for path in ["/var/lib/rekindle/state.db", "/var/lib/rekindle/backup", "/etc/shadow"] {
        let read =
            estate.machine.shell(&format!("setpriv --reuid rekindle --regid rekindle --clear-groups cat {path}"))?;
        ensure!(read.code != Some(0) && !read.stderr.contains("No such file"), "{path}: {read:?}");
    }
    // What the courier cannot write: the policy in force, and anything that root reads as its own.
    for path in ["/var/lib/rekindle/policy", "/var/lib/rekindle", "/etc/rekindle", "/run/rekindle"] {
        let write = estate
            .machine
            .shell(&format!("setpriv --reuid rekindle --regid rekindle --clear-groups touch {path}/probe"))?;
        ensure!(write.code != Some(0), "the courier may write {path}");
    }
    Ok(())
}

/// Every socket that the process holds is in a table of local ones, and in no table of the network's.
fn check_sockets(pid: u32) -> Result<()> {
    let held = sockets(pid)?;
    let tables = |names: &[&str]| -> Result<BTreeSet<u64>> {
        let mut found = BTreeSet::new();
        for name in names {
            found.extend(inodes(pid, name)?);
        }
        Ok(found)
    };
    let network = tables(NETWORK)?;
    let leaks: Vec<&u64> = held.intersection(&network).collect();
    ensure!(leaks.is_empty(), "the agent holds network sockets: {leaks:?}");
    // One that was closed in between is in no table; one that is still held must be.
    let local = tables(LOCAL)?;
    let unknown: Vec<u64> = held.difference(&local).copied().collect();
    let still = sockets(pid)?;
    let local = tables(LOCAL)?;
    let unknown: Vec<u64> =
        unknown.into_iter().filter(|inode| still.contains(inode) && !local.contains(inode)).collect();
    ensure!(unknown.is_empty(), "the agent holds sockets of no known family: {unknown:?}");
    ensure!(!held.is_empty(), "the agent holds no socket at all: not even its control socket was seen");
    Ok(())
}

/// Inodes of the sockets among the descriptors of a process.
fn sockets(pid: u32) -> Result<BTreeSet<u64>> {
    let dir = format!("/proc/{pid}/fd");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot list `{dir}`"))? {
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if let Some(inode) = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            found.insert(inode.parse().with_context(|| format!("`{target}` has no inode"))?);
        }
    }
    Ok(found)
}

/// Inodes in one table of sockets, found by the column that its header names. A family that the kernel lacks has none.
fn inodes(pid: u32, table: &str) -> Result<BTreeSet<u64>> {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")) else { return Ok(BTreeSet::new()) };
    let mut lines = text.lines();
    let header = lines.next().with_context(|| format!("the table {table} is empty"))?;
    let mut found = BTreeSet::new();
    for line in lines {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode = match table {
            // Num RefCount Protocol Flags Type St Inode [Path]
            "unix" => fields.get(6),
            // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode, and sk RefCnt Type Proto Iface R Rmem User Inode
            "netlink" | "packet" => fields.last(),
            // sl local rem st tx:rx tr:when retrnsmt uid timeout inode …
            _ => fields.get(9),
        };
        let inode = inode.with_context(|| format!("no inode in `{line}` under `{header}`"))?;
        found.insert(inode.parse().with_context(|| format!("`{inode}` of `{line}` is no inode, under `{header}`"))?);
    }
    Ok(found)
}

/// `/proc/PID/status` by key.
fn status(pid: u32) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("{pid} is gone"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect())
}

/// Whether a process descends from another.
fn is_below(pid: u32, ancestor: u32) -> bool {
    let Ok(status) = status(pid) else { return false };
    match status.get("PPid").and_then(|parent| parent.parse().ok()) {
        Some(parent) => parent == ancestor || (parent > 1 && is_below(parent, ancestor)),
        None => false,
    }
}
