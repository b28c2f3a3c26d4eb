//! What nobody declares, in a directory that is purged.

use std::time::{Duration, Instant};

use crate::support::{Host, write};

#[test]
fn what_nobody_declares_is_gone_within_a_second_and_kept() {
    let host = Host::new();
    for path in ["/etc/x.d", "/srv/app/sub", "/srv/app/spool/queue"] {
        std::fs::create_dir_all(host.at(path)).unwrap();
    }
    write(&host.at("/etc/x.d/README"), "");
    write(&host.at("/srv/app/spool/queue/1.msg"), "");
    let agent = host.run(
        r#"
        [directory."/etc/x.d"]
        purge = true
        keep  = ["README"]
        [file."/etc/x.d/declared"]
        content = "good\n"
        [directory."/srv/app"]
        purge   = "recursive"
        keep    = ["spool/queue/*.msg", "*.keep"]
        recurse = { file_mode = "0640" }
        [file."/srv/app/sub/declared"]
        content = "good\n"
        "#,
    );
    let status = agent.wait("the watches", |status| status.n_watched == 9);
    assert_eq!(status.scanned_trees.len(), 1);
    assert_eq!(status.scanned_strays.len(), 1, "what is kept by name may be anywhere");
    let strays =
        ["/etc/x.d/evil", "/srv/app/evil", "/srv/app/sub/evil", "/srv/app/spool/evil", "/srv/app/spool/queue/evil"];
    for path in strays {
        let began = Instant::now();
        write(&agent.at(path), "evil\n");
        agent.wait("it to be removed", |_| !agent.at(path).exists());
        assert!(began.elapsed() < Duration::from_secs(1), "{path} took {:?}", began.elapsed());
    }
    assert!(agent.at("/etc/x.d/README").exists());
    let status = agent.wait("the end", |status| status.activity.is_empty() && status.n_repairs == 5);
    assert_eq!(status.health.state, "converged");
    let history = agent.history();
    let shown = format!("{:?}", history.last().unwrap().changes);
    assert!(agent.at("/srv/app/spool/queue/1.msg").exists());
    assert!(shown.contains("spool/queue/evil (file, 5 bytes"), "{shown}");
    let attic = agent.settings().paths.state.join("attic");
    assert_eq!(std::fs::read_dir(attic).unwrap().count(), 5);
}
