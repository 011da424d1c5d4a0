//! The public API of this crate as Rust declarations, compared with
//! `public-api.txt`: what changes for users of the library shows in a review.
//!
//! After a deliberate change write it anew and read the difference:
//! `UPDATE_GOLDEN=1 cargo test -p vmap-proxy-compiler --test public_api`. Why it
//! reads the sources and does not call `cargo public-api`: decision 40.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "support/golden.rs"]
mod golden;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::{Attribute, Expr, Fields, ImplItem, Item, ItemImpl, Type, UseTree, Visibility, parse_quote};

/// Returns the declarations of the crate, without their private parts.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<String, Module>,
    /// All implementations, wherever they stand.
    impls: Vec<ItemImpl>,
}

#[derive(Default)]
struct Module {
    /// Whether the module can be named from outside.
    is_public: bool,
    /// Its items that are declared `pub`.
    items: Vec<Item>,
}

/// Reads a module's file and the files of the modules in it.
fn read(all: &mut Crate, directory: &Path, file: &Path, path: &str, is_public: bool) {
    let text = fs::read_to_string(file).unwrap();
    let mut module = Module { is_public, items: Vec::new() };
    for item in syn::parse_file(&text).unwrap().items {
        match item {
            Item::Mod(inner) if inner.content.is_none() => {
                let is_test = inner.attrs.iter().any(|attribute| attribute.path().is_ident("cfg"));
                if !is_test {
                    let name = inner.ident.to_string();
                    let (below, beside) = (directory.join(&name), directory.join(format!("{name}.rs")));
                    let file = if beside.exists() { beside } else { below.join("mod.rs") };
                    read(all, &below, &file, &format!("{path}::{name}"), is_public && is_pub(&inner.vis));
                }
            }
            Item::Impl(mut item) => {
                strip_impl(&mut item);
                all.impls.push(item);
            }
            mut item => {
                if strip(&mut item) {
                    module.items.push(item);
                }
            }
        }
    }
    all.modules.insert(path.to_owned(), module);
}

fn is_pub(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Takes out of an item what is no part of the API. Returns whether the item
/// is declared `pub`.
fn strip(item: &mut Item) -> bool {
    match item {
        Item::Struct(item) => {
            strip_attributes(&mut item.attrs);
            strip_fields(&mut item.fields);
            is_pub(&item.vis)
        }
        Item::Enum(item) => {
            strip_attributes(&mut item.attrs);
            for variant in &mut item.variants {
                strip_attributes(&mut variant.attrs);
                variant.fields.iter_mut().for_each(|field| strip_attributes(&mut field.attrs));
            }
            is_pub(&item.vis)
        }
        Item::Fn(item) => {
            strip_attributes(&mut item.attrs);
            *item.block = parse_quote!({});
            is_pub(&item.vis)
        }
        Item::Const(item) => {
            strip_attributes(&mut item.attrs);
            *item.expr = value();
            is_pub(&item.vis)
        }
        Item::Type(item) => {
            strip_attributes(&mut item.attrs);
            is_pub(&item.vis)
        }
        Item::Use(item) => {
            strip_attributes(&mut item.attrs);
            is_pub(&item.vis)
        }
        Item::Trait(item) => {
            strip_attributes(&mut item.attrs);
            is_pub(&item.vis)
        }
        _ => false,
    }
}

/// Private fields become one, so that it is seen that there are some.
fn strip_fields(fields: &mut Fields) {
    fields.iter_mut().for_each(|field| strip_attributes(&mut field.attrs));
    match fields {
        Fields::Named(fields) => {
            let all = fields.named.len();
            fields.named = std::mem::take(&mut fields.named).into_iter().filter(|field| is_pub(&field.vis)).collect();
            if fields.named.len() < all {
                let private: Fields = Fields::Named(parse_quote!({ _private: () }));
                fields.named.extend(private);
            }
        }
        Fields::Unnamed(fields) => {
            fields.unnamed.iter_mut().filter(|field| !is_pub(&field.vis)).for_each(|field| field.ty = parse_quote!(()));
        }
        Fields::Unit => {}
    }
}

fn strip_impl(item: &mut ItemImpl) {
    strip_attributes(&mut item.attrs);
    let is_trait = item.trait_.is_some();
    item.items.retain_mut(|inner| match inner {
        ImplItem::Fn(function) => {
            strip_attributes(&mut function.attrs);
            function.block = parse_quote!({});
            !is_trait && is_pub(&function.vis)
        }
        ImplItem::Const(constant) => {
            strip_attributes(&mut constant.attrs);
            constant.expr = value();
            !is_trait && is_pub(&constant.vis)
        }
        ImplItem::Type(_) => is_trait,
        _ => false,
    });
}

/// Stands for the value of a constant.
fn value() -> Expr {
    parse_quote!(_)
}

/// Attributes that mean something to users stay.
fn strip_attributes(attributes: &mut Vec<Attribute>) {
    let kept = ["derive", "non_exhaustive", "must_use"];
    attributes.retain(|attribute| kept.iter().any(|name| attribute.path().is_ident(name)));
}

/// The names that a `pub use` brings in.
fn used(tree: &UseTree, names: &mut BTreeSet<String>) {
    match tree {
        UseTree::Path(path) => used(&path.tree, names),
        UseTree::Name(name) => drop(names.insert(name.ident.to_string())),
        UseTree::Rename(name) => drop(names.insert(name.ident.to_string())),
        UseTree::Group(group) => group.items.iter().for_each(|tree| used(tree, names)),
        _ => panic!("a glob hides what is public"),
    }
}

fn name_of(item: &Item) -> String {
    match item {
        Item::Struct(item) => item.ident.to_string(),
        Item::Enum(item) => item.ident.to_string(),
        Item::Fn(item) => item.sig.ident.to_string(),
        Item::Const(item) => item.ident.to_string(),
        Item::Type(item) => item.ident.to_string(),
        Item::Trait(item) => item.ident.to_string(),
        _ => String::new(),
    }
}

/// The implementations for a type that users see something of, in the order of
/// their text.
fn impls_for(all: &Crate, name: &str) -> Vec<Item> {
    let is_for = |item: &&ItemImpl| match &*item.self_ty {
        Type::Path(path) => path.path.segments.last().is_some_and(|segment| segment.ident == name),
        _ => false,
    };
    let is_seen = |item: &&ItemImpl| item.trait_.is_some() || !item.items.is_empty();
    let impls = all.impls.iter().filter(is_for).filter(is_seen).map(|item| Item::Impl(item.clone()));
    let mut impls: Vec<Item> = impls.collect();
    impls.sort_by_cached_key(|item| print(vec![item.clone()]));
    impls
}

fn print(items: Vec<Item>) -> String {
    let mut file: syn::File = parse_quote!();
    file.items = items;
    prettyplease::unparse(&file)
}

/// The API: all declarations that can be named from outside, without
/// documentation, bodies, values and private parts.
fn public_api() -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Crate::default();
    read(&mut all, &source, &source.join("lib.rs"), "vmap_proxy_compiler", true);
    let mut exported = BTreeSet::new();
    for item in all.modules.values().filter(|module| module.is_public).flat_map(|module| &module.items) {
        if let Item::Use(item) = item {
            used(&item.tree, &mut exported);
        }
    }
    let mut text = String::new();
    for (path, module) in &all.modules {
        let is_seen = |item: &&Item| module.is_public || exported.contains(&name_of(item));
        let mut seen = Vec::new();
        for item in module.items.iter().filter(is_seen) {
            seen.push(item.clone());
            if matches!(item, Item::Struct(_) | Item::Enum(_)) {
                seen.extend(impls_for(&all, &name_of(item)));
            }
        }
        if !seen.is_empty() {
            text.push_str(&format!("// {path}\n\n{}\n", print(seen)));
        }
    }
    text
}

#[test]
fn the_public_api_is_the_one_that_is_written_down() {
    let api = public_api();
    for line in ["pub fn compile(", "    pub fn update(&mut self, store: &mut Store) -> Option<Plan> {}"] {
        assert!(api.contains(line), "the test does not find {line} any more:\n{api}");
    }
    assert!(!api.contains("struct Phases"), "private types are no API");
    golden::check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("public-api.txt"), &api);
}
