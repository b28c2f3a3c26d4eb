//! Real apt and a real signed repository: the agent's own `apt-get update` of one source, in a mount namespace in which apt's
//! configuration and lists are a test's own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::support::World;

const SOURCES: &str = "apt/sources.list.d/internal.sources";

struct Apt {
    world: World,
    gpg: PathBuf,
}

fn tool(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} is needed by this test: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

impl Apt {
    fn new() -> Option<Self> {
        let world = World::new()?;
        for directory in
            ["apt/apt.conf.d", "apt/keyrings", "apt/sources.list.d", "lists", "cache", "pool", "tree/DEBIAN", "gpg"]
        {
            fs::create_dir_all(world.path(directory)).unwrap();
        }
        tool(Command::new("chmod").args(["700"]).arg(world.path("gpg")));
        tool(Command::new("chmod").args(["-R", "a+rX"]).arg(world.path("pool")));
        world.write(
            "tree/DEBIAN/control",
            "Package: rekindle-thing\nVersion: 1.5\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n",
        );
        tool(Command::new("chmod").args(["-R", "755"]).arg(world.path("tree")));
        tool(
            Command::new("dpkg-deb")
                .args(["--build", "--root-owner-group"])
                .arg(world.path("tree"))
                .arg(world.path("pool")),
        );
        let gpg = world.path("gpg");
        let apt = Self { world, gpg };
        apt.sign("apt@example.org");
        Some(apt)
    }

    fn gpg(&self) -> Command {
        let mut command = Command::new("gpg");
        command.args(["--batch", "--quiet", "--yes", "--passphrase", "", "--homedir"]).arg(&self.gpg);
        command
    }

    /// Makes a key, signs the index with it, and puts the public half into the policy unless there is one already.
    fn sign(&self, who: &str) {
        tool(self.gpg().args(["--quick-generate-key", who, "ed25519", "sign", "never"]));
        let pool = self.world.path("pool");
        for (what, into) in [("packages", "Packages"), ("release", "Release")] {
            let output = tool(Command::new("apt-ftparchive").args([what, "."]).current_dir(&pool));
            fs::write(pool.join(into), output.stdout).unwrap();
        }
        tool(
            self.gpg()
                .args(["--local-user", who, "--clearsign", "--output"])
                .arg(pool.join("InRelease"))
                .arg(pool.join("Release")),
        );
        fs::remove_file(pool.join("Release")).unwrap();
        tool(Command::new("chmod").args(["-R", "a+rX"]).arg(&pool));
        if !self.world.exists("policy/keys/apt.asc") {
            let key = tool(self.gpg().args(["--armor", "--export", who])).stdout;
            self.world.write("policy/keys/apt.asc", &String::from_utf8(key).unwrap());
        }
    }

    /// Runs a command where apt has nothing but what is here, and no service manager runs.
    fn run(&self, script: &str) -> (i32, String) {
        let at = self.world.at();
        let mounts = format!(
            "mount --make-rprivate / && mount --bind {at}/apt /etc/apt && mount --bind {at}/lists /var/lib/apt/lists \
             && mount --bind {at}/cache /var/cache/apt && mkdir -p /run/systemd && mount -t tmpfs none /run/systemd && {script}"
        );
        let output =
            Command::new("unshare").args(["--mount", "sh", "-c", &mounts]).env("NO_COLOR", "1").output().unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    fn apply(&self, toml: &str) -> (i32, String) {
        self.world.policy(toml);
        let (program, at) = (env!("CARGO_BIN_EXE_rekindle"), self.world.at());
        self.run(&format!("{program} --config {at}/agent.toml apply --policy {at}/policy"))
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        drop(Command::new("gpgconf").arg("--homedir").arg(&self.gpg).args(["--kill", "all"]).output());
    }
}

const INTERNAL: &str =
    "[repository.internal]\napt = { uris = ['file:$T/pool'], suites = ['./'], key = 'keys/apt.asc' }\n";

#[test]
fn apt_knows_a_repository_at_once_and_forgets_it() {
    let Some(apt) = Apt::new() else { return };
    let (code, text) = apt.apply(INTERNAL);
    assert_eq!(code, 0, "{text}");
    let (_, policy) = apt.run("apt-cache policy rekindle-thing");
    assert!(policy.contains("Candidate: 1.5"), "{policy}\n{text}");
    let (code, text) = apt.apply("[repository.internal]\nstate = 'absent'\n");
    assert_eq!(code, 0, "{text}");
    let (_, policy) = apt.run("apt-cache policy rekindle-thing");
    assert!(!policy.contains("1.5"), "{policy}");
    assert!(!apt.world.exists(SOURCES) && !apt.world.exists("apt/keyrings/rekindle-internal.asc"));
}

#[test]
fn what_another_key_signed_is_not_taken() {
    let Some(apt) = Apt::new() else { return };
    apt.sign("somebody.else@example.org");
    let (code, text) = apt.apply(INTERNAL);
    // The files are as declared; that it cannot be read is logged, and holds nothing else up.
    assert_eq!(code, 0, "{text}");
    assert!(apt.world.exists(SOURCES), "{text}");
    let (_, policy) = apt.run("apt-cache policy rekindle-thing");
    assert!(!policy.contains("1.5"), "{policy}");
}
