//! Contents that lie on a disk which does not keep them.

use std::os::unix::fs::FileExt as _;

use crate::support::{GOOD, Host, write};

#[test]
fn contents_that_the_disk_lost_are_compiled_again_and_files_repaired_with_them() {
    let agent = Host::new().guard(&["/etc/file"]);
    let place = agent.at("/etc/file");
    let policies = agent.settings().paths.policies();
    let home = std::fs::read_dir(&policies).unwrap().next().unwrap().unwrap().path();
    let compiled = home.join("compiled");
    let length = std::fs::metadata(&compiled).unwrap().len();
    let file = std::fs::File::options().write(true).open(&compiled).unwrap();
    file.write_all_at(b"EVIL", length - u64::try_from(GOOD.len()).unwrap()).unwrap();

    // Whoever needs the content first finds out: the guard for its next copy, or a run.
    write(&place, "drifted\n");
    let says = |warning: &String| warning.contains("on the disk is damaged; it is compiled again");
    agent.wait("it to say so", |status| status.warnings.iter().any(says));
    agent.wait_for_file(&place, |text| text == GOOD);
    assert!(!compiled.exists(), "what is damaged is not taken up by the next start");

    for _ in 0..20 {
        write(&place, "drifted again\n");
        agent.wait_for_file(&place, |text| text == GOOD);
    }
    let status = agent.wait("it to converge", |status| status.health.state == "converged");
    assert_eq!(status.warnings.iter().filter(|warning| says(warning)).count(), 1, "{:?}", status.warnings);
}
