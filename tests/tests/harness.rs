//! The harness itself: if one of these fails, nothing else here means anything.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rekindle_tests::{
    AptRepository, Authority, GitServer, Invocation, Machine, Receiver, Signature, TestPackage, wait_for,
};

#[test]
fn a_machine_boots_runs_programs_and_is_born_anew() -> Result<()> {
    let mut machine = Machine::boot()?;
    ensure!(machine.sh("cat /etc/hostname")?.trim() == machine.name());
    ensure!(machine.shell("exit 7")?.code == Some(7));
    machine.put("/etc/mark", "before\n")?;
    ensure!(machine.sh("cat /etc/mark")? == "before\n");
    machine.sh("mv /etc/default /etc/default2")?;
    let journald = machine.main_pid("systemd-journald.service")?.context("journald runs")?;
    ensure!(std::fs::read_to_string(format!("/proc/{journald}/comm"))?.trim() == "systemd-journal");

    machine.reimage(|root| rekindle_tests::put(root.join("etc/token"), "new\n"))?;
    ensure!(machine.shell("test -e /etc/mark")?.code == Some(1));
    ensure!(machine.read("/etc/token")? == "new\n");
    machine.power_off()
}

#[test]
fn two_machines_do_not_see_each_others_services() -> Result<()> {
    let (one, other) = (Machine::boot()?, Machine::boot()?);
    for machine in [&one, &other] {
        machine.sh("systemd-run --quiet --unit=probe sleep infinity")?;
    }
    one.sh("systemctl stop probe")?;
    ensure!(!one.is_active("probe")?);
    ensure!(other.is_active("probe")?);
    Ok(())
}

#[test]
fn apt_installs_from_the_local_repository_alone() -> Result<()> {
    let machine = Machine::boot()?;
    let apt = AptRepository::new()?;
    apt.add(&TestPackage::with_service("rk-hello", "1.0"))?;
    apt.add(&TestPackage::broken("rk-broken", "1.0"))?;
    apt.publish_to(&machine)?;
    machine.sh("apt-get install -qy rk-hello && systemctl start rk-hello")?;
    ensure!(machine.is_active("rk-hello")?);
    ensure!(machine.sh("systemctl is-enabled rk-hello || true")?.trim() == "disabled");
    let broken = machine.shell("apt-get install -qy rk-broken")?;
    ensure!(broken.code == Some(100), "{broken:?}");
    apt.add(&TestPackage::with_service("rk-hello", "1.1"))?;
    apt.publish_to(&machine)?;
    ensure!(machine.sh("apt-cache policy rk-hello")?.contains("Candidate: 1.1"));
    Ok(())
}

#[test]
fn git_is_served_over_https_with_signed_commits() -> Result<()> {
    rekindle_tests::require()?;
    let authority = Authority::new()?;
    let mut git = GitServer::start(&authority)?;
    git.write("policy.toml", "[policy]\nname = \"test\"\n")?;
    let first = git.commit("Begin", Signature::Trusted)?;
    let unsigned = git.commit("Unsigned", Signature::None)?;
    git.commit("Stranger", Signature::Stranger)?;

    let dir = tempfile::tempdir()?;
    let clone = |into: &str| {
        Invocation::new("git")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_SSL_CAINFO", authority.file())
            .dir(dir.path())
            .args(["clone", "-q", &git.url(), into])
            .output()
    };
    clone("one")?.ok()?;
    rekindle_tests::put(dir.path().join("signers"), git.allowed_signers()?)?;
    let verify = |commit: &str| {
        let signers = format!("gpg.ssh.allowedSignersFile={}", dir.path().join("signers").display());
        let args = ["-C", "one", "-c", &signers, "verify-commit", commit];
        Ok::<_, anyhow::Error>(Invocation::new("git").dir(dir.path()).args(args).output()?.code == Some(0))
    };
    ensure!(verify(&first)?);
    ensure!(!verify(&unsigned)?);
    ensure!(!verify("HEAD")?);

    git.force_push(&first)?;
    ensure!(git.head()? == first);
    git.stop();
    // The server's workers end a moment after it.
    wait_for("the connection to be refused", Duration::from_secs(10), || {
        let down = Invocation::new("curl").args(["--silent", "--insecure", &git.url()]).output()?;
        Ok((down.code == Some(7)).then_some(()))
    })?;
    git.resume()
}

#[test]
fn the_receiver_believes_only_valid_signatures() -> Result<()> {
    rekindle_tests::require()?;
    let authority = Authority::new()?;
    let mut receiver = Receiver::start(&authority)?;
    let post = |id: &str, signed_body: &str, body: &str| -> Result<()> {
        let now = jiff::Timestamp::now().as_second();
        let key = Invocation::new("sh")
            .args(["-c", "printf %s \"${SECRET#whsec_}\" | base64 -d | od -An -tx1 | tr -d ' \\n'"])
            .env("SECRET", receiver.secret())
            .ok()?;
        let signature = Invocation::new("sh")
            .args(["-c", "openssl dgst -sha256 -mac HMAC -macopt hexkey:$KEY -binary | base64 -w0"])
            .env("KEY", key)
            .stdin(format!("{id}.{now}.{signed_body}"))
            .ok()?;
        Invocation::new("curl")
            .args(["--silent", "--show-error", "--cacert"])
            .arg(authority.file())
            .args(["-H", &format!("webhook-id: {id}"), "-H", &format!("webhook-timestamp: {now}")])
            .args(["-H", &format!("webhook-signature: v1,AAAA v1,{signature}"), "--data-raw", body, &receiver.url()])
            .ok()?;
        Ok(())
    };
    post("m1", "{\"n\":1}", "{\"n\":1}")?;
    post("m2", "{\"n\":1}", "{\"n\":2}")?;
    let good = receiver.wait_for("the first message", Duration::from_secs(5), |message| message.id == "m1")?;
    ensure!(good.verified == Ok(()) && good.body["n"] == 1, "{good:?}");
    let forged = receiver.wait_for("the second message", Duration::from_secs(5), |message| message.id == "m2")?;
    ensure!(forged.verified.is_err());

    receiver.answer(500);
    post("m3", "{}", "{}")?;
    ensure!(receiver.refused().len() == 1 && receiver.messages().len() == 2);
    receiver.stop();
    ensure!(post_fails(&receiver)?);
    receiver.resume()?;
    ensure!(!post_fails(&receiver)?);
    Ok(())
}

/// Whether a connection is refused.
fn post_fails(receiver: &Receiver) -> Result<bool> {
    Ok(Invocation::new("curl").args(["--silent", "--insecure", "--data-raw", "{}", &receiver.url()]).output()?.code
        == Some(7))
}
