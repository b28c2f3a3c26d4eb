//! A policy repository behind a real https server: nginx, fcgiwrap and git's own CGI program.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::certificates::{Authority, Certificate};
use crate::run::{Daemon, Invocation, free_port, put, wait_for};

/// Where Debian and others keep git's CGI program.
const BACKENDS: &[&str] = &["/usr/lib/git-core/git-http-backend", "/usr/libexec/git-core/git-http-backend"];

/// Whether a commit is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// By the key that [`GitServer::allowed_signers`] names.
    Trusted,
    /// By a key that nobody named.
    Stranger,
    /// Not at all.
    None,
}

/// A policy repository and its server.
#[derive(Debug)]
pub struct GitServer {
    dir: TempDir,
    port: u16,
    authority_file: PathBuf,
    running: Option<[Daemon; 2]>,
}

impl GitServer {
    /// Makes an empty repository, keys to sign with, and starts the server.
    pub fn start(authority: &Authority) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("rekindle-git-").tempdir().context("no directory")?;
        let certificate = authority.issue("git")?;
        let port = free_port()?;
        put(dir.path().join("nginx.conf"), nginx_conf(&dir, port, &certificate)?)?;
        for key in ["trusted", "stranger"] {
            Invocation::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", &format!("{key}@example.org"), "-f"])
                .arg(dir.path().join(key))
                .ok()?;
        }
        let mut server = Self { dir, port, authority_file: authority.file(), running: None };
        server.git_anywhere().args(["init", "-q", "--bare", "-b", "main"]).arg(server.bare()).ok()?;
        server.git_anywhere().args(["init", "-q", "-b", "main"]).arg(server.work()).ok()?;
        server.resume()?;
        Ok(server)
    }

    /// The URL of the repository.
    pub fn url(&self) -> String {
        format!("https://localhost:{}/policy.git", self.port)
    }

    /// The content of an allowed_signers file that names the trusted key.
    pub fn allowed_signers(&self) -> Result<String> {
        let key = std::fs::read_to_string(self.dir.path().join("trusted.pub")).context("cannot read the public key")?;
        Ok(format!("trusted@example.org namespaces=\"git\" {key}"))
    }

    /// Writes a file of the policy; the next [`Self::commit`] takes it.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        put(self.work().join(path), content)
    }

    /// Commits everything and pushes it; returns the commit's id.
    pub fn commit(&self, message: &str, signature: Signature) -> Result<String> {
        self.git().args(["add", "--all"]).ok()?;
        let key = match signature {
            Signature::Trusted => Some("trusted"),
            Signature::Stranger => Some("stranger"),
            Signature::None => None,
        };
        let mut commit = self.git();
        if let Some(key) = key {
            let key = self.dir.path().join(key);
            commit = commit.args(["-c", "gpg.format=ssh", "-c", &format!("user.signingkey={}", key.display())]);
        }
        commit = commit.args(["commit", "-q", "--allow-empty", "-m", message]);
        commit.args(key.map(|_| "-S")).ok()?;
        self.git().args(["push", "-q", "--force"]).arg(self.bare()).arg("HEAD:main").ok()?;
        self.head()
    }

    /// Moves the branch to another commit, backwards or sideways, as an attacker with a stolen push right would.
    pub fn force_push(&self, commit: &str) -> Result<()> {
        self.git().args(["reset", "-q", "--hard", commit]).ok()?;
        self.git().args(["push", "-q", "--force"]).arg(self.bare()).arg("HEAD:main").ok()?;
        Ok(())
    }

    /// The commit that the branch points to.
    pub fn head(&self) -> Result<String> {
        Ok(self.git().args(["rev-parse", "HEAD"]).ok()?.trim().to_owned())
    }

    /// Stops the server: connections are refused.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Starts the server again on the same port.
    pub fn resume(&mut self) -> Result<()> {
        let socket = self.dir.path().join("cgi.socket");
        drop(std::fs::remove_file(&socket));
        let log = self.dir.path().join("log");
        let mut cgi = Daemon::start("fcgiwrap", ["-s", &format!("unix:{}", socket.display())], &log)?;
        wait_for("the CGI socket", Duration::from_secs(10), || {
            ensure!(!cgi.ended()?, "fcgiwrap ended: {}", self.log());
            Ok(socket.exists().then_some(()))
        })?;
        let conf = self.dir.path().join("nginx.conf");
        let mut nginx =
            Daemon::start("nginx", ["-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), conf.as_os_str()], &log)?;
        wait_for("the git server", Duration::from_secs(10), || {
            ensure!(!nginx.ended()?, "nginx ended: {}", self.log());
            let request = format!("{}/info/refs?service=git-upload-pack", self.url());
            let answer = Invocation::new("curl")
                .args(["--silent", "--fail", "--output", "/dev/null", "--cacert"])
                .arg(&self.authority_file)
                .arg(request)
                .output()?;
            Ok((answer.code == Some(0)).then_some(()))
        })
        .with_context(|| self.log())?;
        self.running = Some([nginx, cgi]);
        Ok(())
    }

    /// What the server and its CGI program have written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn bare(&self) -> PathBuf {
        self.dir.path().join("srv/policy.git")
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn git(&self) -> Invocation {
        self.git_anywhere().arg("-C").arg(self.work())
    }

    /// git without the settings of whoever runs the tests.
    fn git_anywhere(&self) -> Invocation {
        Invocation::new("git")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_AUTHOR_NAME", "Author")
            .env("GIT_AUTHOR_EMAIL", "trusted@example.org")
            .env("GIT_COMMITTER_NAME", "Author")
            .env("GIT_COMMITTER_EMAIL", "trusted@example.org")
    }
}

fn nginx_conf(dir: &TempDir, port: u16, certificate: &Certificate) -> Result<String> {
    let Some(backend) = BACKENDS.iter().find(|path| std::path::Path::new(path).exists()) else {
        bail!("git's CGI program is at none of {BACKENDS:?}: install Debian's git");
    };
    let dir = dir.path().display();
    let (certificate, key) = (certificate.certificate.display(), certificate.key.display());
    Ok(format!(
        "daemon off;
master_process off;
pid {dir}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        location / {{
            fastcgi_pass unix:{dir}/cgi.socket;
            fastcgi_param SCRIPT_FILENAME {backend};
            fastcgi_param GIT_PROJECT_ROOT {dir}/srv;
            fastcgi_param GIT_HTTP_EXPORT_ALL 1;
            fastcgi_param GIT_PROTOCOL $http_git_protocol;
            fastcgi_param PATH_INFO $uri;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param REMOTE_ADDR $remote_addr;
        }}
    }}
}}
"
    ))
}
