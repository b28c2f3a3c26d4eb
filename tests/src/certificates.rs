//! A private certificate authority for the servers of one test.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;

use crate::run::put;

/// A certificate authority that nothing but the test trusts.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A server's certificate for `localhost` and 127.0.0.1, with its key.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// PEM file of the certificate.
    pub certificate: PathBuf,
    /// PEM file of the key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes a new one.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "rekindle test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("cannot make the authority's key")?;
        let pem = params.self_signed(&key).context("cannot sign the authority")?.pem();
        let dir = tempfile::Builder::new().prefix("rekindle-authority-").tempdir().context("no directory")?;
        put(dir.path().join("ca.pem"), &pem)?;
        Ok(Self { dir, issuer: Issuer::new(params, key), pem })
    }

    /// The authority's certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// PEM file of the authority's certificate.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Makes a certificate for a server on the loopback. The files live as long as the authority.
    pub fn issue(&self, server: &str) -> Result<Certificate> {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).context("cannot describe a certificate")?;
        params.distinguished_name.push(DnType::CommonName, server);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().context("cannot make a server's key")?;
        let signed = params.signed_by(&key, &self.issuer).context("cannot sign a server's certificate")?;
        let in_dir = |suffix: &str| self.dir.path().join(Path::new(server)).with_extension(suffix);
        let certificate = Certificate { certificate: in_dir("crt"), key: in_dir("key") };
        put(&certificate.certificate, signed.pem())?;
        put(&certificate.key, key.serialize_pem())?;
        Ok(certificate)
    }
}
