//! Certificates and TLS servers' configurations, made for a test.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SignatureAlgorithm, date_time_ymd,
};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Why certificates can't be made.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key (PKCS#8).
    pub key: String,
}

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one, with a key of this kind.
    ///
    /// # Errors
    /// The library refuses.
    pub fn new(algorithm: &'static SignatureAlgorithm) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm)?)?))
    }

    /// Its certificate.
    pub fn certificate(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a server of these names and addresses.
    ///
    /// # Errors
    /// The library refuses.
    pub fn server(&self, names: &[&str], algorithm: &'static SignatureAlgorithm) -> Result<Pair, Error> {
        let mut params = parameters(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, algorithm)
    }

    /// A certificate for a client.
    ///
    /// # Errors
    /// The library refuses.
    pub fn client(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Pair, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, algorithm)
    }

    fn sign(&self, params: CertificateParams, algorithm: &'static SignatureAlgorithm) -> Result<Pair, Error> {
        let key = KeyPair::generate_for(algorithm)?;
        Ok(Pair { certificate: params.signed_by(&key, &self.0)?.pem(), key: key.serialize_pem() })
    }
}

/// A certificate that signs itself, of an authority or not, valid still or not.
///
/// # Errors
/// The library refuses.
pub fn self_signed(names: &[&str], is_authority: bool, is_expired: bool) -> Result<Pair, Error> {
    let mut params = parameters(names)?;
    if is_authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    if is_expired {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    }
    let key = KeyPair::generate()?;
    Ok(Pair { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

fn parameters(names: &[&str]) -> Result<CertificateParams, Error> {
    Ok(CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?)
}

/// A server that speaks this protocol (`h2`, `http/1.1`), and asks clients for
/// a certificate of this authority, if one is given.
///
/// # Errors
/// Certificate and key don't go together.
pub fn server_config(pair: &Pair, protocol: &str, clients: Option<&Authority>) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match clients {
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.certificate().as_bytes())?)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let mut config = builder.with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Ok(Arc::new(config))
}
