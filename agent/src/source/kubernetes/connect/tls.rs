//! TLS to the API server: trust anchors and client certificate.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use thiserror::Error;

use super::settings::{Identity, Pem, Trust};

/// Certificates in one file, at most.
const MOST_CERTIFICATES: usize = 10_000;

/// The reason why a TLS connection cannot be tried.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("can't read {place}: {source}")]
    Read {
        /// The file.
        place: String,
        /// The cause.
        source: std::io::Error,
    },
    /// No certificate authority.
    #[error("{0} has no certificate in PEM for a certificate authority")]
    NoAuthority(String),
    /// The machine has none, and none was configured.
    #[error(
        "no certificate authority is configured, and this machine or image has no store of its own; give \
         certificate-authority in the kubeconfig, or mount a store and name it in SSL_CERT_FILE"
    )]
    NoStore,
    /// No client certificate.
    #[error("{0} has no client certificate in PEM")]
    NoCertificate(String),
    /// No key.
    #[error("{0} has no private key in PEM (PKCS#8, PKCS#1 or SEC1, not encrypted)")]
    NoKey(String),
    /// Certificate and key don't go together, or are of an unknown kind.
    #[error("the client certificate in {place}: {source}")]
    Identity {
        /// Its place.
        place: String,
        /// The defect.
        source: rustls::Error,
    },
    /// The error of the TLS library.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    /// The error of the certificate verifier.
    #[error("{0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// The server has a name that no certificate can have.
    #[error("{0:?} is not a valid name in a certificate; set tls-server-name")]
    ServerName(String),
}

/// Creates the configuration of each new connection from the current content of
/// the files, because certificates are rotated at run time.
pub(super) struct Tls {
    trust: Trust,
    identity: Option<Identity>,
    server_name: Option<String>,
    last: Mutex<Option<Arc<ClientConfig>>>,
}

impl Tls {
    /// Reads nothing yet.
    pub(super) fn new(trust: Trust, identity: Option<Identity>, server_name: Option<String>) -> Self {
        Self { trust, identity, server_name, last: Mutex::new(None) }
    }

    /// Reads everything; the plugin's client certificate replaces the
    /// configured one.
    pub(super) fn load(&self, plugin: Option<&Identity>) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let verifier: Arc<dyn ServerCertVerifier> = match &self.trust {
            Trust::Anybody => Arc::new(Anybody(provider)),
            Trust::These(pem) => Arc::new(Pinned::new(authorities(pem)?, provider)?),
            Trust::System => Arc::new(Pinned::new(system_authorities()?, provider)?),
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let config = match plugin.or(self.identity.as_ref()) {
            Some(identity) => {
                let (chain, key) = read_identity(identity)?;
                let place = identity.certificate.place();
                builder.with_client_auth_cert(chain, key).map_err(|source| TlsError::Identity { place, source })?
            }
            None => builder.with_no_client_auth(),
        };
        let config = Arc::new(config);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(config.clone());
        Ok(config)
    }

    /// The same, or the last content while a file is being replaced.
    pub(super) fn load_or_last(&self, plugin: Option<&Identity>) -> Result<Arc<ClientConfig>, TlsError> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (self.load(plugin), last) {
            (Err(error), Some(last)) => {
                tracing::debug!("going on with the certificates that were read before: {error}");
                Ok(last)
            }
            (result, _) => result,
        }
    }

    /// The name that the server's certificate must have.
    pub(super) fn server_name(&self, host: &str) -> Result<ServerName<'static>, TlsError> {
        server_name(self.server_name.as_deref().unwrap_or(host))
    }

    /// Certificate and key as they are on disk now, to notice a rotation.
    pub(super) fn identity_files(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let Identity { certificate, key } = self.identity.as_ref()?;
        if matches!((certificate, key), (Pem::Inline(_), Pem::Inline(_))) {
            return None;
        }
        Some((certificate.read().ok()?, key.read().ok()?))
    }
}

/// A host in TLS notation, without brackets around an IPv6 address.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).map_err(|_| TlsError::ServerName(host.to_owned()))
}

fn read(pem: &Pem) -> Result<Vec<u8>, TlsError> {
    pem.read().map_err(|source| TlsError::Read { place: pem.place(), source })
}

/// Returns all certificates; other blocks and unreadable ones are skipped, as
/// in Go.
fn certificates(text: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text).take(MOST_CERTIFICATES).filter_map(Result::ok).collect()
}

fn authorities(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = certificates(&read(pem)?);
    if found.is_empty() { Err(TlsError::NoAuthority(pem.place())) } else { Ok(found) }
}

fn system_authorities() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        found.errors.iter().for_each(|error| tracing::debug!("the machine's certificate authorities: {error}"));
        return Err(TlsError::NoStore);
    }
    Ok(found.certs)
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_identity(identity: &Identity) -> Result<ChainAndKey, TlsError> {
    let chain = certificates(&read(&identity.certificate)?);
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(identity.certificate.place()));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&identity.key)?);
    Ok((chain, key.map_err(|_| TlsError::NoKey(identity.key.place()))?))
}

/// As Go's `x509.Certificate.Verify`: a certificate that is itself among the
/// trusted ones needs no issuer, and may be one of an authority. (webpki
/// refuses those: clusters whose server uses its own CA certificate.)
struct Pinned {
    trusted: Vec<CertificateDer<'static>>,
    inner: Arc<WebPkiServerVerifier>,
}

impl Pinned {
    fn new(trusted: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(trusted.iter().cloned());
        if usable == 0 {
            return Err(TlsError::NoAuthority("the list of certificate authorities".to_owned()));
        }
        Ok(Self { trusted, inner: WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()? })
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} certificate authorities", self.trusted.len())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // webpki checks the dates first, so they are valid. "Other" is its
            // name for a certificate of an authority.
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)))
                if self.trusted.iter().any(|trusted| trusted == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// `insecure-skip-tls-verify`
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
