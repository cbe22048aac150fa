//! TLS with a server, by libpq's rules, and what of the server's certificate a login is bound to.
//!
//! | sslmode | connections that are tried | certificate |
//! |---|---|---|
//! | disable | plain | |
//! | allow | plain, then TLS | its chain, if a root certificate is there |
//! | prefer | TLS (plain if the server has none), then plain | its chain, if a root certificate is there |
//! | require | TLS | its chain, if a root certificate is there |
//! | verify-ca | TLS | its chain |
//! | verify-full | TLS | its chain and its name |
//!
//! Invariant: where a certificate must be good, no connection is ever made over one that is not.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::door::{Door, Root, SslMode};
use super::error::SessionError;
use super::wire::Stream;

/// One way of connecting that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Plain,
    Tls,
    /// TLS, or plain if the server has none.
    TlsIfOffered,
}

/// What is tried, in order. (libpq, too, never speaks TLS through a Unix socket.)
pub(super) fn attempts(door: &Door) -> &'static [Attempt] {
    if door.socket().is_some() {
        return &[Attempt::Plain];
    }
    match door.ssl_mode() {
        SslMode::Disable => &[Attempt::Plain],
        SslMode::Allow => &[Attempt::Plain, Attempt::Tls],
        SslMode::Prefer => &[Attempt::TlsIfOffered, Attempt::Plain],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Attempt::Tls],
    }
}

fn failed(at: &str, what: impl Into<String>, source: Option<io::Error>) -> SessionError {
    SessionError::Tls { at: at.to_owned(), what: what.into(), source }
}

/// Asks the server whether it speaks TLS. Reads one byte and no more: what an attacker slips in behind it must not be taken for something that
/// came encrypted.
pub(super) async fn is_offered(stream: &mut (impl Stream + ?Sized), at: &str) -> Result<bool, SessionError> {
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    let lost = |source| SessionError::Lost { at: at.to_owned(), source };
    stream.write_all(&request).await.map_err(lost)?;
    stream.flush().await.map_err(lost)?;
    match stream.read_u8().await.map_err(lost)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        other => {
            let what = format!("asked for TLS it answers `{}`", char::from(other).escape_default());
            Err(SessionError::Protocol { at: at.to_owned(), what })
        }
    }
}

/// What is said when TLS is wanted and the server has none.
pub(super) fn not_offered(at: &str) -> SessionError {
    failed(at, "the server does not offer it: set `ssl = on` there, or a weaker `sslmode`", None)
}

/// The handshake; and the hash of the certificate that a login can be bound to.
pub(super) async fn handshake<S: Stream>(
    stream: S,
    door: &Door,
    at: &str,
) -> Result<(TlsStream<S>, Option<Vec<u8>>), SessionError> {
    let name = door.host().to_owned();
    let name =
        ServerName::try_from(name).map_err(|_| failed(at, "its host is no name that a certificate can have", None))?;
    let verifier = verifier(door).map_err(|what| failed(at, what, None))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(at, error.to_string(), None))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(why)) => failed(at, advice(why, door), None),
            Some(_) => failed(at, "the handshake failed", Some(error)),
            None => SessionError::Lost { at: at.to_owned(), source: error },
        }
    })?;
    let certificates = stream.get_ref().1.peer_certificates();
    let binding = certificates.and_then(|chain| chain.first()).and_then(|certificate| end_point(certificate));
    Ok((stream, binding))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn advice(why: &CertificateError, door: &Door) -> String {
    let root = match door.root() {
        Root::File(path) => path.display().to_string(),
        Root::System | Root::Anyone => "the system's certificates".to_owned(),
    };
    match why {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let host = door.host();
            format!("its certificate is not for {host}: connect by a name that stands in its subjectAltName")
        }
        CertificateError::UnknownIssuer => {
            format!("nobody in {root} signed its certificate: set `sslrootcert` to who did")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: renew it".to_owned()
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            format!("its certificate is an authority's own and not the one in {root}: put it there, or have one signed")
        }
        other => format!("its certificate is not good ({other:?})"),
    }
}

/// How far a certificate is looked at.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None`: whoever has the certificate's key will do.
    chain: Option<Arc<dyn ServerCertVerifier>>,
    name_counts: bool,
    /// Certificates that are named themselves, and not who signed them.
    named: Vec<CertificateDer<'static>>,
}

fn verifier(door: &Door) -> Result<Verifier, String> {
    let provider = provider();
    let name_counts = door.ssl_mode() == SslMode::VerifyFull;
    let (chain, named): (Option<Arc<dyn ServerCertVerifier>>, _) = match door.root() {
        Root::Anyone => (None, Vec::new()),
        Root::System => {
            let system = rustls_platform_verifier::Verifier::new(provider.clone()).map_err(|error| {
                format!("the system's certificates cannot be used ({error}): install `ca-certificates`")
            })?;
            (Some(Arc::new(system)), Vec::new())
        }
        Root::File(path) => {
            let named = certificates(path)?;
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(named.iter().cloned());
            if added == 0 {
                return Err(format!("{} holds no certificate that can be used", path.display()));
            }
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            (Some(inner.build().map_err(|error| format!("{}: {error}", path.display()))?), named)
        }
    };
    Ok(Verifier { provider, chain, name_counts, named })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable =
        |error: &dyn std::fmt::Display| format!("`sslrootcert` {} cannot be read ({error})", path.display());
    let text = std::fs::read(path).map_err(|error| unreadable(&error))?;
    CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|error| unreadable(&error))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        if self.named.iter().any(|named| named == end_entity) {
            // Many servers sign for themselves, and their certificate is what is handed to clients.
            if self.name_counts {
                let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at when all the rest was good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name_counts => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// RFC 5929's `tls-server-end-point`: the certificate's hash, by the hash that its signature uses, and SHA-256 in place of what is too old.
/// `None` where the signature names none (Ed25519, RSA-PSS).
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    use aws_lc_rs_digest::{SHA256, SHA384, SHA512, digest};
    let algorithm = match signature_oid(certificate)? {
        // 1.2.840.113549.1.1: RSA with MD5, SHA-1, SHA-256; 384; 512.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4 | 5 | 11] => &SHA256,
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12] => &SHA384,
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13] => &SHA512,
        // 1.2.840.10045.4: ECDSA with SHA-1; and .3: with SHA-256, 384, 512.
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => &SHA256,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => &SHA384,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4] => &SHA512,
        _ => return None,
    };
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

use ::aws_lc_rs::digest as aws_lc_rs_digest;

/// Certificate ::= SEQUENCE { what is signed, SEQUENCE { the signature's OID, … }, … }
fn signature_oid(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OID: u8 = 0x06;
    let (outer, _) = element(certificate, SEQUENCE)?;
    let (_, rest) = element(outer, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    element(algorithm, OID).map(|(oid, _)| oid)
}

/// A DER element's content, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    (first == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signatures_hash_is_found_and_no_junk_upsets_it() {
        // SEQUENCE { SEQUENCE {}, SEQUENCE { OID ecdsa-with-SHA384 } }
        let certificate = [0x30, 14, 0x30, 0, 0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
        assert_eq!(end_point(&certificate).map(|hash| hash.len()), Some(48));
        for cut in 0..certificate.len() {
            assert_eq!(end_point(&certificate[..cut]), None);
        }
        for place in 0..certificate.len() {
            for byte in 0..=255 {
                let mut junk = certificate;
                junk[place] = byte;
                let _ = end_point(&junk);
            }
        }
        assert_eq!(element(&[0x30, 0x84, 255, 255, 255, 255], 0x30), None);
    }
}
