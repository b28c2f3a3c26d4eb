//! File systems that the kernel finds damaged, or that are full. Needs root and a loop device.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use rekindle::spool::{OutgoingBody, ReimageCall};

use crate::support::{Host, Running, tool, write};

/// Whether the test can be made here. In CI it must be.
fn can_mount() -> bool {
    let can = rekindle::host::current_ids().0 == 0 && Path::new("/dev/loop-control").exists();
    assert!(can || std::env::var_os("CI").is_none(), "needs root and loop devices");
    if !can {
        eprintln!("not shown: needs root and loop devices");
    }
    can
}

#[test]
fn case_44_an_error_that_ext4_finds_in_itself_leads_to_a_request() {
    if !can_mount() {
        return;
    }
    let mut host = Host::new().with_endpoint();
    let image = host.settings.paths.state.join("image");
    write(&image, "");
    std::fs::File::options().write(true).open(&image).unwrap().set_len(8 * 1024 * 1024).unwrap();
    tool("mkfs.ext4", &["-q", image.to_str().unwrap()]);
    let data = host.mount(&["-o", "loop,errors=continue"], &image, "/data");
    // The kernel says it in one place only; the managed host has it where hosts have it. What is mounted beneath, such as the
    // control groups of this machine, is left out.
    host.mount(&["--bind"], Path::new("/sys"), "/sys");
    let device = tool("findmnt", &["-n", "-o", "SOURCE", data.to_str().unwrap()]);
    let device = device.trim().trim_start_matches("/dev/").to_owned();
    assert!(device.starts_with("loop"), "never the disk of this machine: {device}");
    let count = PathBuf::from(format!("/sys/fs/ext4/{device}/errors_count"));

    let agent = host.guard(&["/data/file"]);
    agent.look();
    let status = agent.wait("a second look at everything", |status| status.health.state == "converged");
    assert_eq!(status.health.request, None, "a sound file system is no reason");

    write(Path::new(&format!("/sys/fs/ext4/{device}/trigger_fs_error")), "case 44");
    agent.wait_for_file(&count, |text| text.trim() == "1");
    agent.look();
    agent.wait("a request", |status| status.health.request.is_some());
    let asked: Vec<(String, String)> = agent
        .outbox()
        .into_iter()
        .filter_map(|message| match message {
            OutgoingBody::Reimage(ReimageCall::Request { reason, summary, .. }) => Some((reason, summary)),
            OutgoingBody::Reimage(_) | OutgoingBody::Alert(_) => None,
        })
        .collect();
    let [(reason, summary)] = asked.as_slice() else { panic!("{asked:?}") };
    assert_eq!(reason, "failed");
    let expected = format!("fs-error: the ext4 file system on {device} has found 1 errors in itself, the first at ");
    assert!(summary.starts_with(&expected), "{summary}");
}

/// An alert about a repair of `path`, or a request because of it, waits for the courier.
fn is_told(agent: &Running, path: &str) -> bool {
    agent.outbox().iter().any(|message| match message {
        OutgoingBody::Alert(alert) => alert.resources.iter().any(|told| &*told.resource.name == path),
        OutgoingBody::Reimage(ReimageCall::Request { summary, .. }) => summary.contains(path),
        OutgoingBody::Reimage(_) => false,
    })
}

#[test]
fn on_a_full_disk_it_repairs_records_and_phones_home_and_recovers_when_there_is_room() {
    if !can_mount() {
        return;
    }
    let mut host = Host::new().with_endpoint();
    let image = host.beside("image");
    write(&image, "");
    std::fs::File::options().write(true).open(&image).unwrap().set_len(96 * 1024 * 1024).unwrap();
    tool("mkfs.ext4", &["-q", "-m", "0", image.to_str().unwrap()]);
    host.mount_state(&["-o", "loop"], &image);
    let state = host.settings.paths.state.clone();
    let agent = host
        .run("[file.'/etc/a']\ncontent = \"good\\n\"\n[file.'/etc/b']\ncontent = \"good\\n\"\non_drift = 'reimage'\n");
    let reserve = state.join("reserve");
    assert!(reserve.is_dir(), "there is room, and so a reserve");

    let filler = state.join("filler");
    let mut file = std::fs::File::options().create_new(true).append(true).open(&filler).unwrap();
    for size in [1024 * 1024, 4096, 1] {
        while file.write_all(&vec![b'x'; size]).and_then(|()| file.sync_all()).is_ok() {}
    }
    drop(file);
    write(&agent.at("/etc/a"), "drifted\n");
    agent.wait("the repair to be told", |_| is_told(&agent, "/etc/a"));
    assert_eq!(std::fs::read_to_string(agent.at("/etc/a")).unwrap(), "good\n");
    let status = agent.wait("the reserve to be in use", |status| status.warnings.iter().any(|w| w.contains("reserve")));
    assert!(!reserve.join("bytes").exists(), "{:?}", status.warnings);
    let entries = agent.history();
    assert!(entries.iter().any(|e| &*e.resource.name == "/etc/a" && e.outcome == "changed"), "{entries:?}");
    // The reserve is full as well, and what is left of it is enough for this.
    write(&agent.at("/etc/b"), "drifted\n");
    agent.wait("a request to be reimaged", |status| status.health.request.is_some() && is_told(&agent, "/etc/b"));

    std::fs::remove_file(&filler).unwrap();
    agent.look();
    agent.wait("the reserve to be held again", |_| reserve.join("bytes").exists());
    write(&agent.at("/etc/a"), "again\n");
    let n_before = entries.len();
    agent.wait("another repair", |_| {
        agent.history().iter().skip(n_before).any(|e| &*e.resource.name == "/etc/a" && e.outcome == "changed")
    });
    assert_eq!(std::fs::read_to_string(agent.at("/etc/a")).unwrap(), "good\n");
}
