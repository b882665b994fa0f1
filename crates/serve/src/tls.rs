//! TLS from two PEM files.

use crate::Error;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// A certificate with its chain, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, then those that signed it.
    pub cert: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
}

/// Read the files.
pub(crate) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, Error> {
    let bad = |path: &Path, what: String| Error::Tls { path: path.to_owned(), what };
    let pem = fs_err::read(&files.cert).map_err(Error::Io)?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(&files.cert, format!("is no certificate in PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(bad(&files.cert, "has no certificate in PEM".into()));
    }
    let pem = fs_err::read(&files.key).map_err(Error::Io)?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| bad(&files.key, format!("has no private key in PEM: {error}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&files.cert, format!("cannot be used: {error}")))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| bad(&files.key, format!("does not go with the certificate: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
