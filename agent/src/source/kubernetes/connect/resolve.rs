//! The addresses of a host name: the API server's, or that of a proxy.
//!
//! The C library looks them up. musl asks for both families, and if one fails it returns no address of the other, which Go
//! and glibc do. That happens with name servers that know no AAAA records: some load balancers answer SERVFAIL or NXDOMAIN,
//! or nothing.

use std::ffi::{CString, c_int};
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::pin::Pin;
use std::ptr;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use thiserror::Error;
use tower::Service;

/// The settings of the C library's resolver.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The reason why a host cannot be reached by its name.
#[derive(Debug, Error)]
#[error("can't find the address of {host}: {source}; check this name, and {}", place(.is_configured))]
pub(super) struct NoAddress {
    host: String,
    source: io::Error,
    /// Whether there is a file with name servers.
    is_configured: bool,
}

fn place(is_configured: &bool) -> String {
    match is_configured {
        true => format!("the name servers in {RESOLV_CONF}"),
        false => format!("give the container a file {RESOLV_CONF}: without it only this machine itself is asked"),
    }
}

/// Looks names up on the event loop's threads for blocking work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolver;

impl Service<Name> for Resolver {
    type Response = IntoIter<SocketAddr>;
    type Error = NoAddress;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NoAddress>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoAddress>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(addresses(name))
    }
}

async fn addresses(name: Name) -> Result<IntoIter<SocketAddr>, NoAddress> {
    let host = name.to_string();
    let source = match GaiResolver::new().call(name).await {
        Ok(addresses) => return Ok(addresses.collect::<Vec<_>>().into_iter()),
        Err(error) => error,
    };
    let is_configured = File::open(RESOLV_CONF).is_ok();
    if cfg!(target_env = "musl") && is_configured {
        let name = host.clone();
        let found = tokio::task::spawn_blocking(move || of_one_family(&name)).await.unwrap_or_default();
        if !found.is_empty() {
            return Ok(found.into_iter());
        }
    }
    Err(NoAddress { host, source, is_configured })
}

/// Asks for each family alone, so that a failure of one does not hide the other. Once one has an answer, the other one
/// is known to fail, which takes 5 s.
fn of_one_family(host: &str) -> Vec<SocketAddr> {
    let mut answers = [libc::AF_INET, libc::AF_INET6].into_iter().map(|family| of_family(host, family));
    answers.find(|addresses| !addresses.is_empty()).unwrap_or_default()
}

/// Asks the C library itself: the crate `dns-lookup` panics at a canonical name that is not UTF-8. musl takes that name from
/// the name server's answer, whether it was asked for or not.
fn of_family(host: &str, family: c_int) -> Vec<SocketAddr> {
    let Ok(host) = CString::new(host) else { return Vec::new() };
    // SAFETY: addrinfo consists of integers and pointers, which may be zero.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_family = family;
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut list = ptr::null_mut();
    // SAFETY: the name ends in NUL, and all pointers are valid during the call.
    if unsafe { libc::getaddrinfo(host.as_ptr(), ptr::null(), &hints, &mut list) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = list;
    // SAFETY: each entry is null or valid until the list is freed.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: the same.
        found.extend(unsafe { address(entry) });
        next = entry.ai_next;
    }
    // SAFETY: a list of getaddrinfo, freed once.
    unsafe { libc::freeaddrinfo(list) };
    found
}

/// The address of an entry, with port 0.
///
/// # Safety
/// `ai_addr` points to `ai_addrlen` bytes, as in an entry of `getaddrinfo`.
unsafe fn address(entry: &libc::addrinfo) -> Option<SocketAddr> {
    let length = entry.ai_addrlen as usize;
    match entry.ai_family {
        libc::AF_INET if length >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: it has the size of this type, and any bytes are a value of it.
            let address = unsafe { entry.ai_addr.cast::<libc::sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, 0).into())
        }
        libc::AF_INET6 if length >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: the same.
            let address = unsafe { entry.ai_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, 0, 0, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_addresses() {
        let found = |host, family| of_family(host, family).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found("192.0.2.7", libc::AF_INET), ["192.0.2.7:0"]);
        assert_eq!(found("2001:db8::7", libc::AF_INET6), ["[2001:db8::7]:0"]);
        assert_eq!(found("fe80::7%1", libc::AF_INET6), ["[fe80::7%1]:0"]);
        assert!(of_family("192.0.2.7", libc::AF_INET6).is_empty());
        assert!(of_family("2001:db8::7", libc::AF_INET).is_empty());
        assert!(of_family("a\0b", libc::AF_INET).is_empty());
        assert_eq!(of_one_family("192.0.2.7"), ["192.0.2.7:0".parse().unwrap()]);
        assert_eq!(of_one_family("2001:db8::7"), ["[2001:db8::7]:0".parse().unwrap()]);
    }

    #[test]
    fn a_name_without_an_address_is_named_with_the_remedy() {
        let error = |is_configured| {
            let source = io::Error::other("Name does not resolve");
            NoAddress { host: "api.example".to_owned(), source, is_configured }.to_string()
        };
        for (is_configured, remedy) in
            [(true, "servers in /etc/resolv.conf"), (false, "give the container a file /etc")]
        {
            let text = error(is_configured);
            assert!(text.contains("address of api.example: Name does not resolve") && text.contains(remedy), "{text}");
        }
    }
}
