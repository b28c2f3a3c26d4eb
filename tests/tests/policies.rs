//! The policies that we ship, each converged on a booted host that is as bare as its distribution makes it, with the real
//! packages: afterwards the host does what the policy promises, and a second run finds nothing to do.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rekindle_tests::product::build;
use rekindle_tests::{AptRepository, BaseImage, Invocation, Machine, put, wait_for};

/// Where the host has its copy of the policy.
const POLICY: &str = "/srv/policy";

/// A host with a policy on it, and the key of whoever is to come in at `/root/id`.
struct Host {
    machine: Machine,
}

impl Host {
    /// Boots a host with the agent and a copy of a shipped policy, in which `edit` puts in what its README tells a user to.
    fn with_policy(name: &str, edit: impl FnOnce(&Path, &Machine, &str) -> Result<()>) -> Result<Self> {
        let machine = Machine::boot_alone()?;
        let apt = AptRepository::new()?;
        for package in BaseImage::server_packages()? {
            apt.add_file(&package)?;
        }
        apt.add_file(&build()?.package)?;
        apt.publish_to(&machine)?;
        machine.run("apt-get").args(["-qy", "install", "rekindle"]).ok()?;

        machine.run("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", "/root/id"]).ok()?;
        let public = machine.read("/root/id.pub")?;
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name);
        let inside = machine.path(POLICY);
        Invocation::new("cp").arg("-r").arg(&shipped).arg(&inside).ok()?;
        edit(&inside, &machine, public.trim())?;
        Ok(Self { machine })
    }

    /// Converges, and then a second time, which must find nothing.
    fn converge(&self, roles: &[&str]) -> Result<()> {
        let roles: Vec<String> = roles.iter().map(|role| format!("--roles={role}")).collect();
        let run =
            |command: &str| self.machine.run("rekindle").args([command, "--policy", POLICY]).args(&roles).output();
        let first = run("apply")?;
        ensure!(first.code == Some(0), "the first run: {first:?}");
        let plan = run("plan")?;
        ensure!(plan.code == Some(0), "the host differs from what was just applied: {plan:?}");
        let second = run("apply")?;
        ensure!(
            second.code == Some(0) && second.stdout.contains(" 0 changed, 0 failed, 0 skipped"),
            "the second run: {second:?}"
        );
        Ok(())
    }

    /// Runs a command over ssh, as this user with the new key.
    fn ssh(&self, user: &str, options: &[&str], command: &str) -> Result<rekindle_tests::Output> {
        self.machine
            .run("ssh")
            .args(["-i", "/root/id", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"])
            .args(options)
            .args([&format!("{user}@127.0.0.1"), command])
            .output()
    }
}

/// Puts another public key into a file of the policy, as whoever uses it must.
fn replace_key(file: &Path, public: &str) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let line = text.lines().find(|line| line.starts_with("authorized_keys = ")).context("no key to replace")?;
    put(file, text.replace(line, &format!("authorized_keys = [\"{public}\"]")))
}

#[test]
fn ssh_hardening_lets_in_whom_it_names_and_nobody_else() -> Result<()> {
    let host = Host::with_policy("ssh-hardening", |policy, _, public| {
        replace_key(&policy.join("modules/operators.toml"), public)
    })?;
    let machine = &host.machine;
    host.converge(&[])?;

    let login = host.ssh("ops", &[], "sudo -n id -u")?;
    ensure!(login.code == Some(0) && login.stdout.trim() == "0", "{login:?}");
    // Root, a password, an old key exchange and a short key are all refused.
    let root = host.ssh("root", &[], "true")?;
    ensure!(root.code == Some(255) && root.stderr.contains("Permission denied (publickey)"), "{root:?}");
    let weak = host.ssh("ops", &["-o", "KexAlgorithms=diffie-hellman-group14-sha256"], "true")?;
    ensure!(weak.code == Some(255) && weak.stderr.contains("no matching key exchange"), "{weak:?}");

    let effective = machine.sh("sshd -T")?;
    for line in [
        "permitrootlogin no",
        "passwordauthentication no",
        "kbdinteractiveauthentication no",
        "x11forwarding no",
        "hostkey /etc/ssh/ssh_host_ed25519_key",
        "requiredrsasize 3072",
    ] {
        ensure!(effective.lines().any(|effective| effective == line), "`{line}` is not in effect:\n{effective}");
    }
    let weak = machine.sh("awk '$5 ~ /^[0-9]+$/ && $5 < 3071' /etc/ssh/moduli | wc -l")?;
    ensure!(weak.trim() == "0", "{weak} weak groups are left");
    ensure!(machine.sh("awk '$5 ~ /^[0-9]+$/' /etc/ssh/moduli | wc -l")?.trim() != "0", "no group is left");
    ensure!(machine.shell("test -e /etc/ssh/ssh_host_ecdsa_key")?.code == Some(1));
    // What a person would break by hand is refused before it is in place.
    put(machine.path(POLICY).join("templates/sshd_config.j2"), "PermitRootLogin perhaps\n")?;
    let refused = machine.run("rekindle").args(["apply", "--policy", POLICY]).output()?;
    ensure!(refused.code == Some(2), "{refused:?}");
    ensure!(machine.sh("sshd -T")?.contains("permitrootlogin no"), "what sshd refuses was put in place");
    ensure!(host.ssh("ops", &[], "true")?.code == Some(0));
    Ok(())
}

#[test]
fn web_serves_its_sites_over_tls_and_lets_deploy_deploy() -> Result<()> {
    let host = Host::with_policy("web", |policy, machine, public| {
        replace_key(&policy.join("modules/web.toml"), public)?;
        // How deploy comes in is another policy's concern.
        machine.run("apt-get").args(["-qy", "install", "openssh-server"]).ok()?;
        // A certificate and its key of one's own, the key for this host's identity only.
        machine.sh("mkdir -p /etc/rekindle")?;
        let certificate = policy.join("files/example.org.crt");
        let key = Invocation::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=example.org", "-addext", "subjectAltName=DNS:www.example.org,DNS:docs.example.org"])
            .args(["-keyout", "-", "-out"])
            .arg(&certificate)
            .ok()?;
        let identity = Invocation::new("age-keygen").ok()?;
        put(machine.path("/etc/rekindle/age.key"), &identity)?;
        machine.sh("chmod 0600 /etc/rekindle/age.key")?;
        let recipient = Invocation::new("age-keygen").arg("-y").stdin(identity.into_bytes()).ok()?;
        Invocation::new("age")
            .args(["--encrypt", "--armor", "--recipient", recipient.trim(), "--output"])
            .arg(policy.join("secrets/example.org.key.age"))
            .stdin(key.into_bytes())
            .ok()?;
        Ok(())
    })?;
    let machine = &host.machine;
    host.converge(&["web"])?;

    // Deploy comes in, writes its pages, may reload nginx and nothing else.
    let deployed = host.ssh("deploy", &[], "echo pages > /srv/www/www.example.org/index.html")?;
    ensure!(deployed.code == Some(0), "{deployed:?}");
    let reload = host.ssh("deploy", &[], "sudo -n /usr/bin/systemctl reload nginx.service")?;
    ensure!(reload.code == Some(0), "{reload:?}");
    let more = host.ssh("deploy", &[], "sudo -n id")?;
    ensure!(more.code == Some(1), "{more:?}");

    let fetch = |url: &str, name: &str| {
        let ports = ["80", "443"].map(|port| format!("{name}:{port}:127.0.0.1"));
        machine
            .run("curl")
            .args(["-sS", "--cacert", "/etc/nginx/tls/example.org.crt", "--resolve", &ports[0], "--resolve", &ports[1]])
            .args(["-w", "%{http_code} %{redirect_url}", url])
            .output()
    };
    let page = wait_for("the page", Duration::from_secs(10), || {
        let page = fetch("https://www.example.org/", "www.example.org")?;
        Ok((page.code == Some(0)).then_some(page))
    })?;
    ensure!(page.stdout.starts_with("pages\n200"), "{page:?}");
    let redirected = fetch("http://docs.example.org/a", "docs.example.org")?;
    ensure!(redirected.stdout.ends_with("301 https://docs.example.org/a"), "{redirected:?}");
    let stranger = fetch("https://stranger.example.org/", "stranger.example.org")?;
    ensure!(stranger.code != Some(0), "a name that nobody declared was answered: {stranger:?}");
    ensure!(machine.sh("stat -c '%a %U' /etc/nginx/tls/example.org.key")?.trim() == "600 root");
    machine.sh("logrotate --debug /etc/logrotate.conf")?;
    ensure!(machine.sh("sysctl -n net.core.somaxconn")?.trim() == "4096");

    // A fragment that only fails together with the rest is refused, and nginx goes on with what it has.
    let sites = machine.path(POLICY).join("templates/sites.conf.j2");
    let good = std::fs::read_to_string(&sites).context("cannot read the template")?;
    put(&sites, format!("{good}\nserver {{ listen 443 default_server; }}\n"))?;
    let refused = machine.run("rekindle").args(["apply", "--policy", POLICY, "--roles=web"]).output()?;
    ensure!(refused.code == Some(2), "{refused:?}");
    machine.sh("nginx -t -q")?;
    put(&sites, good)?;
    host.converge(&["web"])?;

    // What nobody declared leaves the directories that are purged, and is kept.
    machine.put("/etc/nginx/conf.d/by-hand.conf", "server { listen 81; }\n")?;
    let plan = machine.run("rekindle").args(["plan", "--policy", POLICY, "--roles=web"]).output()?;
    ensure!(plan.code == Some(2) && plan.stdout.contains("by-hand.conf"), "{plan:?}");
    host.converge(&["web"])?;
    ensure!(machine.shell("test -e /etc/nginx/conf.d/by-hand.conf")?.code == Some(1));
    Ok(())
}
