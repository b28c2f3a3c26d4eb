//! A file system that the kernel finds damaged. Needs root and a loop device.

use std::path::{Path, PathBuf};

use rekindle::spool::{OutgoingBody, ReimageCall};

use crate::support::{Host, tool, write};

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
