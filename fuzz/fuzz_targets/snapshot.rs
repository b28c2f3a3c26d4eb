//! `plan --against`: a tar of whoever, unpacked by root. Nothing of it comes to be outside of its own directory.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rekindle::fuzzing;
use rekindle_fuzz::{put, scratch};

fuzz_target!(
    init: {
        // What is unpacked goes beneath it, too, and must be all that ever does.
        std::fs::create_dir_all(scratch().join("tmp")).expect("it can be made");
        tempfile::env::override_temp_dir(scratch()).expect("nobody else has a say");
    },
    |data: &[u8]| {
        let tar = scratch().join("tmp/host.tar");
        put(&tar, data);
        if let Err(error) = fuzzing::snapshot(&tar) {
            assert!(!error.is_empty());
        }
        std::fs::remove_file(&tar).expect("nobody else removed it");
        for (path, n_expected) in [(scratch().clone(), 1), (scratch().join("tmp"), 0)] {
            assert_eq!(std::fs::read_dir(&path).expect("it is there").count(), n_expected, "{}", path.display());
        }
    }
);
