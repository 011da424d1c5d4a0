//! kube-proxy's nftables mode: its table is read from the kernel, and its rules are
//! followed for one packet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use vmap_proxy_compiler::model::{Family, Protocol};
use vmap_proxy_wire::nf_tables::kube_proxy_table::{
    Expression, KubeProxyElement, elements, list_elements, list_rules, rule,
};
use vmap_proxy_wire::uapi::{
    NF_ACCEPT, NF_DROP, NFT_GOTO, NFT_JUMP, NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, NFT_RETURN,
    RTN_LOCAL,
};

use super::{Frontend, Outcome, Packet};
use crate::netlink::SocketError;
use crate::netlink::socket::{self, Socket};

/// Chains that lead to each other, at most: kube-proxy needs four.
const DEEPEST: usize = 16;

/// The chain that marks packets to be masqueraded.
const MARK: &str = "mark-for-masquerade";

/// `RTN_UNICAST` of `include/uapi/linux/rtnetlink.h`: another address.
const RTN_UNICAST: u32 = 1;

/// kube-proxy's table of one family.
#[derive(Debug)]
pub struct KubeProxyTable {
    family: Family,
    chains: HashMap<String, Vec<Vec<Expression>>>,
    maps: HashMap<String, Vec<KubeProxyElement>>,
    services: BTreeMap<Frontend, KubeProxyElement>,
    no_endpoints: BTreeMap<Frontend, KubeProxyElement>,
    firewall: BTreeSet<Frontend>,
}

impl KubeProxyTable {
    /// Reads the table; `None` if there is none.
    ///
    /// # Errors
    /// If the kernel can't be read.
    pub fn read(family: Family) -> Result<Option<Self>, SocketError> {
        let mut socket = Socket::open(socket::Protocol::Netfilter)?;
        let rules = match socket.list(&list_rules(family), rule) {
            Err(SocketError::Refused(libc::ENOENT)) => return Ok(None),
            other => other?,
        };
        let mut table = Self {
            family,
            chains: HashMap::new(),
            maps: HashMap::new(),
            services: BTreeMap::new(),
            no_endpoints: BTreeMap::new(),
            firewall: BTreeSet::new(),
        };
        for rule in rules {
            table.chains.entry(rule.chain).or_default().push(rule.expressions);
        }
        if table.chains.is_empty() {
            return Ok(None);
        }
        let parts = table.chains.values().flatten().flatten();
        let named: BTreeSet<String> = parts
            .filter_map(|part| match part {
                Expression::VerdictMap { map, .. } => Some(map.clone()),
                _ => None,
            })
            .collect();
        for map in named {
            table.read_map(&mut socket, &map)?;
        }
        table.services = table.frontends(&["service-ips", "service-nodeports"]);
        table.no_endpoints = table.frontends(&["no-endpoint-services", "no-endpoint-nodeports"]);
        table.firewall = table.frontends(&["firewall-ips"]).into_keys().collect();
        Ok(Some(table))
    }

    fn read_map(&mut self, socket: &mut Socket, map: &str) -> Result<(), SocketError> {
        let read = socket.list(&list_elements(self.family, map), |message| Some(elements(message)));
        match read {
            // A rule of another version, without its map.
            Err(SocketError::Refused(libc::ENOENT)) => Ok(()),
            other => {
                self.maps.insert(map.to_owned(), other?.into_iter().flatten().collect());
                Ok(())
            }
        }
    }

    fn frontends(&self, maps: &[&str]) -> BTreeMap<Frontend, KubeProxyElement> {
        let elements = maps.iter().filter_map(|map| self.maps.get(*map)).flatten();
        elements.filter_map(|element| Some((self.frontend(&element.key)?, element.clone()))).collect()
    }

    /// Address . protocol . port, or protocol . port.
    fn frontend(&self, key: &[u8]) -> Option<Frontend> {
        let length = if self.family == Family::Ipv4 { 4 } else { 16 };
        let (address, rest) = match key.len() {
            8 => (None, key),
            length_with if length_with == length + 8 => {
                let (address, rest) = key.split_at(length);
                (Some(address_of(address)?), rest)
            }
            _ => return None,
        };
        let protocol = Protocol::from_number(*rest.first()?)?;
        let port = u16::from_be_bytes(rest.get(4..6)?.try_into().ok()?);
        Some(Frontend { address, protocol, port })
    }

    /// All frontends, with endpoints or without.
    pub fn all(&self) -> BTreeSet<Frontend> {
        self.services.keys().chain(self.no_endpoints.keys()).copied().collect()
    }

    /// Returns whether source ranges restrict a frontend. They are not compared.
    pub fn has_source_ranges(&self, frontend: &Frontend) -> bool {
        self.firewall.contains(frontend)
    }

    /// Follows a packet to a frontend.
    pub fn outcome(&self, frontend: &Frontend, packet: &Packet) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(element) = self.services.get(frontend) {
            let ends = self.verdict(element.code, element.chain.as_deref(), packet, &mut false, 0, &mut outcome);
            if ends {
                return outcome;
            }
        }
        if let Some(element) = self.no_endpoints.get(frontend) {
            self.verdict(element.code, element.chain.as_deref(), packet, &mut false, 0, &mut outcome);
        }
        outcome
    }

    /// Applies a verdict; returns whether the packet's way ends.
    fn verdict(
        &self,
        code: i32,
        chain: Option<&str>,
        packet: &Packet,
        masquerades: &mut bool,
        depth: usize,
        outcome: &mut Outcome,
    ) -> bool {
        match (code, chain) {
            (NF_DROP, _) => {
                outcome.drops = true;
                true
            }
            (NF_ACCEPT, _) => true,
            (NFT_JUMP, Some(MARK)) => {
                *masquerades = true;
                false
            }
            (NFT_JUMP, Some(chain)) => self.follow(chain, packet, masquerades, depth + 1, outcome),
            (NFT_GOTO, Some(chain)) => {
                self.follow(chain, packet, masquerades, depth + 1, outcome);
                true
            }
            _ => false,
        }
    }

    /// Follows a chain; returns whether the packet's way ends in it.
    fn follow(
        &self,
        chain: &str,
        packet: &Packet,
        masquerades: &mut bool,
        depth: usize,
        outcome: &mut Outcome,
    ) -> bool {
        if depth > DEEPEST {
            outcome.unknown = Some(format!("chains lead to each other without end, at {chain}"));
            return true;
        }
        for rule in self.chains.get(chain).into_iter().flatten() {
            let mut registers = HashMap::new();
            for part in rule {
                match self.step(chain, part, packet, &mut registers, masquerades, depth, outcome) {
                    Step::Next => {}
                    Step::OtherRule => break,
                    Step::Back => return false,
                    Step::End => return true,
                }
            }
        }
        false
    }

    #[expect(clippy::too_many_arguments, reason = "the state of the small machine")]
    fn step(
        &self,
        chain: &str,
        part: &Expression,
        packet: &Packet,
        registers: &mut HashMap<u32, Value>,
        masquerades: &mut bool,
        depth: usize,
        outcome: &mut Outcome,
    ) -> Step {
        match part {
            Expression::Payload { register, base, offset, length } => {
                registers.insert(*register, header(self.family, packet, *base, *offset, *length));
            }
            Expression::Protocol { register } => {
                registers.insert(*register, Value::Bytes(vec![packet.protocol.number()]));
            }
            Expression::AddressType { register, is_source } => {
                let is_local = if *is_source { packet.is_own } else { false };
                let number = if is_local { RTN_LOCAL } else { RTN_UNICAST };
                registers.insert(*register, Value::Bytes(number.to_ne_bytes().to_vec()));
            }
            Expression::Random { register } => _ = registers.insert(*register, Value::Random),
            Expression::Bits { from, to, mask, xor } => {
                let value = match registers.get(from) {
                    Some(Value::Bytes(bytes)) => {
                        let masked = bytes.iter().zip(mask).zip(xor).map(|((byte, mask), xor)| (byte & mask) ^ xor);
                        Value::Bytes(masked.collect())
                    }
                    _ => Value::Unknown,
                };
                registers.insert(*to, value);
            }
            Expression::Compare { register, is_equal, data } => match registers.get(register) {
                Some(Value::Bytes(bytes)) => {
                    if (bytes == data) != *is_equal {
                        return Step::OtherRule;
                    }
                }
                _ => return unknown(chain, outcome),
            },
            // Clients are remembered there (affinity); a new one is not.
            Expression::Set => return Step::OtherRule,
            Expression::VerdictMap { register, map } => {
                let elements = self.maps.get(map).map(Vec::as_slice).unwrap_or_default();
                match registers.get(register) {
                    Some(Value::Random) => {
                        for element in elements {
                            let mut masquerades = *masquerades;
                            let (code, to) = (element.code, element.chain.as_deref());
                            self.verdict(code, to, packet, &mut masquerades, depth, outcome);
                        }
                        return Step::End;
                    }
                    _ => return unknown(chain, outcome),
                }
            }
            Expression::Verdict(NFT_RETURN, _) => return Step::Back,
            Expression::Verdict(code, to) => {
                if self.verdict(*code, to.as_deref(), packet, masquerades, depth, outcome) {
                    return Step::End;
                }
            }
            Expression::Translate => {
                match endpoint(chain) {
                    Some(endpoint) => _ = outcome.endpoints.insert(endpoint, *masquerades),
                    None => outcome.unknown = Some(format!("the endpoint of chain {chain}")),
                }
                return Step::End;
            }
            Expression::Reject => {
                outcome.rejects = true;
                return Step::End;
            }
            Expression::Neutral => {}
            Expression::Other => return unknown(chain, outcome),
        }
        Step::Next
    }
}

/// The content of a register.
#[derive(Debug, Clone)]
enum Value {
    Bytes(Vec<u8>),
    Random,
    Unknown,
}

/// The way after a part of a rule.
enum Step {
    Next,
    OtherRule,
    Back,
    End,
}

fn unknown(chain: &str, outcome: &mut Outcome) -> Step {
    outcome.unknown = Some(format!("a rule of chain {chain}"));
    Step::OtherRule
}

fn header(family: Family, packet: &Packet, base: u32, offset: u32, length: u32) -> Value {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (source, destination) = if family == Family::Ipv4 { (12, 16) } else { (8, 24) };
    let mut value = match (base, offset) {
        (NFT_PAYLOAD_NETWORK_HEADER, offset) if offset == source => bytes(packet.source),
        (NFT_PAYLOAD_NETWORK_HEADER, offset) if offset == destination => bytes(packet.destination.ip()),
        (NFT_PAYLOAD_TRANSPORT_HEADER, 2) => packet.destination.port().to_be_bytes().to_vec(),
        _ => return Value::Unknown,
    };
    // A prefix of whole bytes is loaded and compared without a mask.
    value.truncate(length as usize);
    Value::Bytes(value)
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    }
}

/// The endpoint that kube-proxy's name of a chain has: `endpoint-HASH-ns/name/tcp/port__10.244.1.5/8080`,
/// with dots for the colons of IPv6.
fn endpoint(chain: &str) -> Option<SocketAddr> {
    let (address, port) = chain.rsplit_once("__")?.1.rsplit_once('/')?;
    let address = address.parse::<IpAddr>().or_else(|_| address.replace('.', ":").parse::<IpAddr>()).ok()?;
    Some(SocketAddr::new(address, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_from_the_names_of_chains() {
        let chain = "endpoint-XTL3Q2DS-default/web/tcp/http__10.244.1.5/8080";
        assert_eq!(endpoint(chain), Some("10.244.1.5:8080".parse().unwrap()));
        let chain = "endpoint-XTL3Q2DS-default/web/tcp/http__fd00.10.244.1..5/8080";
        assert_eq!(endpoint(chain), Some("[fd00:10:244:1::5]:8080".parse().unwrap()));
        assert_eq!(endpoint("service-XTL3Q2DS-default/web/tcp/http"), None);
    }
}
