//! Configurations as files, and what becomes of them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    file.persist(path).unwrap();
}

fn parse(text: &str) -> Result<Settings, ConfigError> {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "agent.toml", text);
    load_file(&root.path().join("agent.toml"))
}

/// The message with the directory left out.
#[track_caller]
fn problems(text: &str) -> String {
    match parse(text).unwrap_err() {
        ConfigError::Invalid { problems } => {
            let relative = problems.into_iter().map(|problem| {
                let file = problem.place.file.file_name().unwrap().into();
                Problem { place: Place { file, ..problem.place }, ..problem }
            });
            list(&relative.collect::<Vec<_>>())
        }
        other @ (ConfigError::Read { .. } | ConfigError::NotAFile { .. } | ConfigError::Exposed { .. }) => {
            panic!("{other:?}")
        }
    }
}

#[track_caller]
fn check_refused(text: &str, expected: &str) {
    assert_eq!(problems(text), expected);
}

const POLICY: &str = "[policy]\nurl = \"file:///p.git\"\ntrust = \"none\"\n";

#[test]
fn a_host_without_configuration_gets_the_defaults() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(load(root.path()).unwrap(), Settings::default());
    assert_eq!(parse("").unwrap(), Settings::default());
}

#[test]
fn every_key_is_read() {
    let settings = parse(
        r#"
        mode  = "noop"
        roles = ["web", "db"]
        [policy]
        url = "git@git.example:p.git"
        branch = "prod"
        interval = "2m"
        trust = "/etc/rekindle/allowed_signers"
        ca = "/ca.pem"
        ssh_key = "/key"
        known_hosts = "/known"
        token_file = "/token"
        timeout = "30s"
        [converge]
        full_scan = "1h"
        settle = "100ms"
        settle_max = "1s"
        validate_timeout = "20s"
        [health]
        retry = { first = "2s", max = "10m" }
        give_up = { attempts = 3, after = "1m" }
        flapping = { repairs = 7, within = "5m", for = "20m" }
        cool_down = "2h"
        [reimage]
        endpoint = "https://hub.example/"
        identity = { token_file = "/host.token" }
        ca = "/hub.pem"
        join_token_file = "/join"
        host_id = "slot-1"
        checkin = "1m"
        drain = ["/usr/lib/rekindle/drain.d"]
        drain_timeout = "5m"
        local_command = ["/sbin/reboot", "--firmware"]
        [[webhook]]
        url = "http://127.0.0.1:9000/hook"
        format = "standard"
        secret_file = "/hook.key"
        ca = "/hook.pem"
        events = ["drift", "failed", "policy.rejected"]
        [metrics]
        textfile = "/var/lib/node_exporter/textfile_collector/rekindle.prom"
        port = 9464
        [paths]
        root = "/srv/root"
        state = "/srv/state"
        runtime = "/srv/run"
        "#,
    )
    .unwrap();
    let seconds = Duration::from_secs;
    let expected = Settings {
        mode: Mode::Noop,
        roles: vec!["web".into(), "db".into()],
        age_identity: None,
        policy: Some(PolicySettings {
            url: "git@git.example:p.git".into(),
            branch: "prod".into(),
            interval: seconds(120),
            trust: TrustSettings::Keys("/etc/rekindle/allowed_signers".into()),
            ca: Some("/ca.pem".into()),
            ssh_key: Some("/key".into()),
            known_hosts: Some("/known".into()),
            token_file: Some("/token".into()),
            timeout: seconds(30),
        }),
        converge: ConvergeSettings {
            full_scan: seconds(3600),
            settle: Duration::from_millis(100),
            settle_max: seconds(1),
            validate_timeout: seconds(20),
        },
        health: HealthSettings {
            retry_first: seconds(2),
            retry_max: seconds(600),
            give_up_attempts: 3,
            give_up_after: seconds(60),
            flapping_repairs: 7,
            flapping_within: seconds(300),
            flapping_for: seconds(1200),
            cool_down: seconds(7200),
        },
        reimage: Some(ReimageSettings {
            endpoint: "https://hub.example".into(),
            ca: Some("/hub.pem".into()),
            join_token_file: Some("/join".into()),
            token_file: Some("/host.token".into()),
            host_id: Some("slot-1".into()),
            checkin: seconds(60),
            drain: vec!["/usr/lib/rekindle/drain.d".into()],
            drain_timeout: seconds(300),
            local_command: vec!["/sbin/reboot".into(), "--firmware".into()],
        }),
        webhooks: vec![WebhookSettings {
            url: "http://127.0.0.1:9000/hook".into(),
            secret_file: Some("/hook.key".into()),
            ca: Some("/hook.pem".into()),
            events: vec![
                EventFilter::Family("drift".into()),
                EventFilter::Family("convergence".into()),
                EventFilter::Exactly(Event::PolicyRejected),
            ],
        }],
        metrics: MetricsSettings {
            textfile: Some("/var/lib/node_exporter/textfile_collector/rekindle.prom".into()),
            port: Some(9464),
        },
        paths: Paths {
            root: "/srv/root".into(),
            state: "/srv/state".into(),
            runtime: "/srv/run".into(),
            ..Paths::default()
        },
    };
    assert_eq!(settings, expected);
}

#[test]
fn later_files_win_and_a_name_shadows_the_same_name_below() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| put(root.path(), path, text);
    write("usr/lib/rekindle/agent.toml.d/10-a.toml", "roles = [\"vendor\"]\n[health]\ncool_down = \"3h\"\n");
    write("usr/lib/rekindle/agent.toml.d/20-b.toml", "[converge]\nfull_scan = \"1h\"\n");
    write("run/rekindle/agent.toml.d/20-b.toml", "[converge]\nsettle = \"1ms\"\n");
    write("etc/rekindle/agent.toml", "mode = \"noop\"\n[health]\nretry = { first = \"3s\" }\n");
    write("etc/rekindle/agent.toml.d/z.toml", "mode = \"enforce\"\nroles = [\"web\"]\n");
    write("etc/rekindle/agent.toml.d/.z.toml.swp", "nonsense");
    write("etc/rekindle/agent.toml.d/README", "nonsense");
    let settings = load(root.path()).unwrap();
    assert_eq!(settings.mode, Mode::Enforce);
    assert_eq!(settings.roles, ["web"]);
    assert_eq!(settings.health.cool_down, Duration::from_secs(3 * 3600));
    assert_eq!(settings.health.retry_first, Duration::from_secs(3));
    assert_eq!(settings.converge.settle, Duration::from_millis(1));
    assert_eq!(settings.converge.full_scan, ConvergeSettings::default().full_scan, "its file is shadowed");
}

#[test]
fn unknown_keys_are_named_with_what_was_meant() {
    check_refused(
        "mod = \"noop\"\n[policy]\nintervall = \"1m\"\nurl = \"file:///p\"\ntrust = \"none\"\n\n[nonsense]\n",
        "agent.toml:3:1: unknown key `policy.intervall`\nhint: did you mean `interval`?\n\
         agent.toml:1:1: unknown key `mod`\nhint: did you mean `mode`?\n\
         agent.toml:7:2: unknown key `nonsense`\n\
         hint: known here are mode, roles, age_identity, policy, converge, health, reimage, webhook, metrics, paths",
    );
}

#[test]
fn trust_must_be_written_out() {
    let text = problems("[policy]\nurl = \"file:///p.git\"\n");
    assert!(text.starts_with("agent.toml:1:2: `policy` does not say whose signatures count"), "{text}");
    assert!(text.contains("allowed_signers") && text.contains("trust = \"none\""), "{text}");
}

#[test]
fn values_are_refused_where_they_stand() {
    check_refused(
        "[policy]\nurl = \"http://git.example/p\"\ntrust = \"none\"",
        "agent.toml:2:7: `policy.url`: `http` shows the policy to everyone on the way and lets them hold it back; \
         use https or ssh",
    );
    check_refused(
        &format!("{POLICY}interval = \"0s\""),
        "agent.toml:4:12: `policy.interval`: expected at least 1s; found \"0s\"",
    );
    check_refused(
        &format!("{POLICY}branch = \"-x\""),
        "agent.toml:4:10: `policy.branch`: \"-x\" is no name of a branch",
    );
    check_refused(
        "[reimage]\nendpoint = \"http://127.0.0.1\"",
        "agent.toml:2:12: `reimage.endpoint`: `http` would let anyone on the way grant a reimage; the endpoint must be https",
    );
    check_refused(
        "[metrics]\nport = 80",
        "agent.toml:2:8: `metrics.port`: expected a port from 1024 to 65535; found an integer",
    );
    check_refused("mode = 1", "agent.toml:1:8: `mode`: expected a string; found an integer");
    check_refused(
        "webhook = {}",
        "agent.toml:1:11: `webhook`: expected a list of tables, written [[webhook]]; found a table",
    );
    check_refused(
        "[health]\ngive_up = { attempts = 0 }",
        "agent.toml:2:24: `health.give_up.attempts`: expected a whole number of at least 1; found an integer",
    );
    check_refused(
        "[[webhook]]\nurl = \"https://a.example\"\nevents = [\"drfit\"]",
        "agent.toml:3:11: `webhook.events`: there is no event \"drfit\"\nhint: did you mean \"drift\"?",
    );
    check_refused(
        "[converge]\nsettle = \"3s\"",
        "agent.toml:1:2: `converge.settle` (3s) is longer than `converge.settle_max` (2s)\nhint: raise settle_max, the longest wait for a writer that never stops",
    );
}

#[test]
fn what_this_version_cannot_do_is_refused_and_not_ignored() {
    for (text, key) in [
        ("[reimage]\nendpoint = \"https://h\"\nidentity = { certificate = \"/c\" }", "reimage.identity.certificate"),
        ("[health]\nmax_age = \"30d\"", "health.max_age"),
        ("[health]\nwindow = \"Mon 09:00\"", "health.window"),
        ("[converge]\ndeep_scan = \"24h\"", "converge.deep_scan"),
    ] {
        let text = problems(text);
        assert!(text.contains(&format!("`{key}` is not supported by this version\nhint: ")), "{text}");
    }
    let text = problems("[[webhook]]\nurl = \"https://h\"\nformat = \"slack\"");
    assert!(text.contains("not supported by this version"), "{text}");
}

#[test]
fn syntax_errors_have_a_place() {
    let text = problems("mode = \"noop\"\nroles = [\n");
    assert!(text.starts_with("agent.toml:"), "{text}");
}

#[test]
fn a_file_that_others_may_write_is_refused() {
    for mode in [0o666, 0o664, 0o646] {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "agent.toml", "");
        let path = root.path().join("agent.toml");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let text = load_file(&path).unwrap_err().to_string();
        assert!(text.contains(&format!("has mode {mode:04o}")) && text.contains("hint: run `chmod go-w"), "{text}");
    }
}

#[test]
fn a_directory_in_which_others_may_replace_the_file_is_refused() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "etc/rekindle/agent.toml", "");
    let directory = root.path().join("etc/rekindle");
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(load(root.path()), Err(ConfigError::Exposed { path, .. }) if path == directory));
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o1777)).unwrap();
    assert_eq!(load(root.path()).unwrap(), Settings::default());
}

#[test]
fn what_is_no_file_is_refused_without_waiting_for_it() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("agent.toml");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(load_file(&path), Err(ConfigError::NotAFile { found: "a special file", .. })));
    assert!(matches!(load_file(&root.path().join("missing")), Err(ConfigError::Read { .. })));
}
