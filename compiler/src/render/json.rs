//! JSON of the rule set: the same texts as nft's, in a structure that scripts
//! can parse.

use serde::{Serialize, Serializer};

use super::table::{by_map, data, declaration, key, kind, properties};
use crate::ruleset::chains::Chain;
use crate::ruleset::element::Element;
use crate::ruleset::maps::Map;
use crate::ruleset::rule::Rule;
use crate::ruleset::table::{Ruleset, Table};
use crate::ruleset::{Family, LAYOUT, TABLE};

/// The rule set as indented JSON, elements sorted by key.
///
/// # Errors
///
/// In practice this cannot fail, because all values are texts and numbers. The
/// error is returned because the compiler cannot know that.
pub fn json(ruleset: &Ruleset) -> serde_json::Result<String> {
    serde_json::to_string_pretty(ruleset)
}

#[derive(Serialize)]
struct RulesetView<'a> {
    tables: Vec<TableView<'a>>,
}

#[derive(Serialize)]
struct TableView<'a> {
    family: Family,
    name: &'static str,
    comment: &'static str,
    maps: Vec<MapView<'a>>,
    chains: Vec<ChainView<'a>>,
}

#[derive(Serialize)]
struct MapView<'a> {
    name: Map,
    kind: &'static str,
    declaration: String,
    properties: Vec<String>,
    elements: Vec<ElementView<'a>>,
}

#[derive(Serialize)]
struct ElementView<'a> {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<&'a str>,
}

#[derive(Serialize)]
struct ChainView<'a> {
    name: Chain,
    #[serde(flatten)]
    base: Option<BaseView>,
    rules: Vec<InFamily<'a>>,
}

/// A rule together with the family whose words (`ip`, `ip6`) it is written in.
struct InFamily<'a>(Family, &'a Rule);

impl Serialize for InFamily<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::rule(self.0, self.1))
    }
}

#[derive(Serialize)]
struct BaseView {
    r#type: &'static str,
    hook: &'static str,
    priority: i32,
}

impl Serialize for Ruleset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RulesetView { tables: self.tables.iter().map(table_view).collect() }.serialize(serializer)
    }
}

fn table_view(table: &Table) -> TableView<'_> {
    let mut elements = by_map(table);
    TableView {
        family: table.family,
        name: TABLE,
        comment: LAYOUT,
        maps: Map::all().map(|map| map_view(table.family, map, elements.remove(&map).unwrap_or_default())).collect(),
        chains: table.chains.keys().map(|chain| chain_view(table, *chain)).collect(),
    }
}

fn map_view(family: Family, map: Map, elements: Vec<&Element>) -> MapView<'_> {
    MapView {
        name: map,
        kind: kind(map),
        declaration: declaration(family, map),
        properties: properties(map),
        elements: elements.into_iter().map(element_view).collect(),
    }
}

fn element_view(element: &Element) -> ElementView<'_> {
    ElementView { key: key(&element.key), data: data(&element.data), comment: element.comment.as_deref() }
}

fn chain_view(table: &Table, chain: Chain) -> ChainView<'_> {
    let base = chain.base().map(|base| BaseView {
        r#type: if base.nat { "nat" } else { "filter" },
        hook: base.hook.keyword(),
        priority: base.priority,
    });
    let rules = table.chains.get(&chain).map(Vec::as_slice).unwrap_or_default();
    ChainView { name: chain, base, rules: rules.iter().map(|rule| InFamily(table.family, rule)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::element::{Data, Key, Verdict};
    use crate::ruleset::skeleton::SkeletonConfig;
    use crate::ruleset::target::{Domain, Target};

    #[test]
    fn json_has_what_the_text_has() {
        let config = SkeletonConfig {
            family: Family::Ipv4,
            detector: None,
            masquerade_all: false,
            nodeports_on_all_addresses: false,
        };
        let key = crate::ruleset::target::NodePortKey { protocol: crate::model::Protocol::Udp, port: 30053 };
        let element = Element {
            map: Map::NoEndpoints(Domain::NodePort),
            key: Key::Target(Target::NodePort(key)),
            data: Data::Verdict(Verdict::Goto(Chain::Reject)),
            comment: Some("dns/dns:udp".into()),
        };
        let ruleset = Ruleset { tables: vec![Table::new(config, vec![element])] };
        let value = serde_json::to_value(&ruleset).unwrap_or_default();
        let table = &value["tables"][0];
        assert_eq!((&table["family"], &table["name"]), (&"ip".into(), &TABLE.into()));

        let named = |list: &str, name: &str| {
            let list = table[list].as_array().into_iter().flatten();
            list.into_iter().find(|one| one["name"] == name).cloned().unwrap_or_default()
        };
        let map = named("maps", "no-endpoint-nodeports");
        assert_eq!(map["declaration"], "type inet_proto . inet_service : verdict");
        let element =
            serde_json::json!({ "key": "udp . 30053", "data": "goto reject-chain", "comment": "dns/dns:udp" });
        assert_eq!(map["elements"], serde_json::json!([element]));

        let chain = named("chains", "nat-prerouting");
        assert_eq!((&chain["type"], &chain["hook"]), (&"nat".into(), &"prerouting".into()));
        assert_eq!(chain["priority"], -100);
        assert_eq!(chain["rules"], serde_json::json!(["jump services"]));
    }
}
