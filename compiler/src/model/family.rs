//! The two address families, and one value for each of them.

use std::fmt;
use std::net::IpAddr;
use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};

/// The two address families. Each has a separate table, as in kube-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// `table ip vmap-proxy`
    #[serde(rename = "ip")]
    Ipv4,
    /// `table ip6 vmap-proxy`
    #[serde(rename = "ip6")]
    Ipv6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// nft's word for the family and for its header expressions: `ip` or `ip6`.
    pub fn keyword(self) -> &'static str {
        match self {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        }
    }

    /// The length of an address in bytes.
    pub fn address_bytes(self) -> usize {
        match self {
            Family::Ipv4 => 4,
            Family::Ipv6 => 16,
        }
    }
}

impl fmt::Display for Family {
    /// Kubernetes' spelling, as kube-proxy's `ip_family` label has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        })
    }
}

/// One value for each address family.
///
/// ```
/// use vmap_proxy_compiler::model::{Family, PerFamily};
///
/// let mut endpoints = PerFamily { ipv4: 3, ipv6: 0 };
/// endpoints[Family::Ipv6] += 2;
/// assert_eq!(endpoints.map(|count| count * 10), PerFamily { ipv4: 30, ipv6: 20 });
/// let total: i32 = endpoints.into_iter().map(|(_family, count)| count).sum();
/// assert_eq!(total, 5);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PerFamily<T> {
    /// The value for IPv4.
    pub ipv4: T,
    /// The value for IPv6.
    pub ipv6: T,
}

impl<T> PerFamily<T> {
    /// Makes the value of each family, IPv4 first.
    pub fn from_fn(mut value: impl FnMut(Family) -> T) -> Self {
        Self { ipv4: value(Family::Ipv4), ipv6: value(Family::Ipv6) }
    }

    /// Converts both values, IPv4 first.
    pub fn map<U>(self, mut convert: impl FnMut(T) -> U) -> PerFamily<U> {
        PerFamily { ipv4: convert(self.ipv4), ipv6: convert(self.ipv6) }
    }

    /// Joins the values of each family.
    pub fn zip<U>(self, other: PerFamily<U>) -> PerFamily<(T, U)> {
        PerFamily { ipv4: (self.ipv4, other.ipv4), ipv6: (self.ipv6, other.ipv6) }
    }

    /// References to both values.
    pub fn as_ref(&self) -> PerFamily<&T> {
        PerFamily { ipv4: &self.ipv4, ipv6: &self.ipv6 }
    }

    /// Mutable references to both values.
    pub fn as_mut(&mut self) -> PerFamily<&mut T> {
        PerFamily { ipv4: &mut self.ipv4, ipv6: &mut self.ipv6 }
    }

    /// Both values with their families, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        self.as_ref().into_iter()
    }

    /// Both values, IPv4 first.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        [&self.ipv4, &self.ipv6].into_iter()
    }

    /// Both values to change, IPv4 first.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        [&mut self.ipv4, &mut self.ipv6].into_iter()
    }
}

impl<T> Index<Family> for PerFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::Ipv4 => &self.ipv4,
            Family::Ipv6 => &self.ipv6,
        }
    }
}

impl<T> IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::Ipv4 => &mut self.ipv4,
            Family::Ipv6 => &mut self.ipv6,
        }
    }
}

impl<T> IntoIterator for PerFamily<T> {
    type Item = (Family, T);
    type IntoIter = std::array::IntoIter<(Family, T), 2>;

    /// Both values with their families, IPv4 first.
    fn into_iter(self) -> Self::IntoIter {
        [(Family::Ipv4, self.ipv4), (Family::Ipv6, self.ipv6)].into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_value() {
        let mut names = PerFamily::from_fn(|family| family.to_string());
        names[Family::Ipv6].push('!');
        assert_eq!((&*names[Family::Ipv4], &*names[Family::Ipv6]), ("IPv4", "IPv6!"));
        let lengths = names.as_ref().map(String::len).zip(PerFamily { ipv4: 'a', ipv6: 'b' });
        assert!(lengths.into_iter().eq([(Family::Ipv4, (4, 'a')), (Family::Ipv6, (5, 'b'))]));
        names.values_mut().for_each(String::clear);
        assert!(names.values().all(String::is_empty) && names.iter().all(|(family, _)| Family::ALL.contains(&family)));
    }
}
