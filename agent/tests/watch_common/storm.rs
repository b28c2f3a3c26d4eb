//! More events than the kernel keeps.

#![expect(unreachable_pub, clippy::unwrap_used, reason = "shared by several test programs")]

use std::path::Path;

/// Renames a file in a directory to as many names as it takes to overflow the queue of either source: what happens to one name
/// may be merged.
#[expect(clippy::disallowed_methods, reason = "tests change files as others do")]
pub fn storm(directory: &Path) {
    let limits = ["/proc/sys/fs/inotify/max_queued_events", "/proc/sys/fs/fanotify/max_queued_events"];
    let limit =
        limits.iter().filter_map(|path| std::fs::read_to_string(path).ok()).map(|text| text.trim().parse().unwrap());
    let n_files: usize = limit.max().unwrap_or(16384) + 1000;
    std::fs::write(directory.join("f"), "x").unwrap();
    for i in 0..n_files {
        std::fs::rename(
            directory.join(if i == 0 { "f".into() } else { format!("f{i}") }),
            directory.join(format!("f{}", i + 1)),
        )
        .unwrap();
    }
}
