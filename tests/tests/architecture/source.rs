//! What one source file says: the names that it defines, what it imports, and the paths that it uses. Code for tests only is left out.

use std::collections::BTreeSet;

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::{
    Attribute, ImplItem, Item, Meta, UseTree,
    visit::{self, Visit},
};

/// A path and the line that it stands on.
pub struct Path {
    pub names: Vec<String>,
    pub line: usize,
}

/// One name that a `use` brings in.
pub struct Import {
    pub path: Path,
    /// What it is called here; none for all names of the module (`*`).
    pub name: Option<String>,
}

/// A module's content.
#[derive(Default)]
pub struct Content {
    /// What it defines, its modules excepted.
    pub names: BTreeSet<String>,
    /// The macros that it defines for the whole crate, whose path is `crate::name`.
    pub exported: BTreeSet<String>,
    pub imports: Vec<Import>,
    pub paths: Vec<Path>,
    /// Its modules, with their content where that stands in the same file.
    pub modules: Vec<(String, Option<Content>)>,
}

/// Reads a file.
pub fn read(text: &str) -> syn::Result<Content> {
    let file = syn::parse_file(text)?;
    Ok(if for_tests(&file.attrs) { Content::default() } else { content(&file.items) })
}

fn content(items: &[Item]) -> Content {
    let mut content = Content::default();
    let mut used = Used::default();
    for item in items.iter().filter(|item| !for_tests(attributes(item))) {
        match item {
            Item::Mod(m) => {
                let inner = m.content.as_ref().map(|(_, items)| self::content(items));
                content.modules.push((m.ident.to_string(), inner));
            }
            Item::Use(u) => import(&u.tree, &mut Vec::new(), &mut content.imports),
            other => {
                if let Some(name) = name(other) {
                    if attributes(other).iter().any(|a| a.path().is_ident("macro_export")) {
                        content.exported.insert(name.to_string());
                    }
                    content.names.insert(name.to_string());
                }
                used.visit_item(other);
            }
        }
    }
    content.paths = used.0;
    content
}

fn name(item: &Item) -> Option<&Ident> {
    match item {
        Item::Const(i) => Some(&i.ident),
        Item::Enum(i) => Some(&i.ident),
        Item::Fn(i) => Some(&i.sig.ident),
        Item::Macro(i) => i.ident.as_ref(),
        Item::Static(i) => Some(&i.ident),
        Item::Struct(i) => Some(&i.ident),
        Item::Trait(i) => Some(&i.ident),
        Item::Type(i) => Some(&i.ident),
        Item::Union(i) => Some(&i.ident),
        _ => None,
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(i) => &i.attrs,
        Item::Enum(i) => &i.attrs,
        Item::Fn(i) => &i.attrs,
        Item::Impl(i) => &i.attrs,
        Item::Macro(i) => &i.attrs,
        Item::Mod(i) => &i.attrs,
        Item::Static(i) => &i.attrs,
        Item::Struct(i) => &i.attrs,
        Item::Trait(i) => &i.attrs,
        Item::Type(i) => &i.attrs,
        Item::Union(i) => &i.attrs,
        Item::Use(i) => &i.attrs,
        _ => &[],
    }
}

/// Whether what bears these attributes is compiled for tests only.
fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            is_test(&list.tokens.clone().into_iter().collect::<Vec<_>>())
        }
        _ => false,
    })
}

/// Whether a condition holds in tests only: `test`, or `all(…)` with such a part.
fn is_test(condition: &[TokenTree]) -> bool {
    match condition {
        [TokenTree::Ident(word)] => word == "test",
        [TokenTree::Ident(word), TokenTree::Group(parts)] if word == "all" => {
            let parts: Vec<TokenTree> = parts.stream().into_iter().collect();
            parts.split(|token| is_punct(token, ',')).any(is_test)
        }
        _ => false,
    }
}

fn import(tree: &UseTree, before: &mut Vec<String>, imports: &mut Vec<Import>) {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            import(&path.tree, before, imports);
            before.pop();
        }
        UseTree::Name(one) => imports.push(named(before, &one.ident, &one.ident)),
        UseTree::Rename(one) => imports.push(named(before, &one.ident, &one.rename)),
        UseTree::Glob(all) => {
            let line = all.star_token.spans[0].start().line;
            imports.push(Import { path: Path { names: before.clone(), line }, name: None });
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| import(tree, before, imports)),
    }
}

/// The import of `ident` after the path `before`, under this name.
fn named(before: &[String], ident: &Ident, name: &Ident) -> Import {
    let mut names = before.to_vec();
    // `module::{self, …}` means the module.
    if ident != "self" || names.is_empty() {
        names.push(ident.to_string());
    }
    let name = if name == "self" { names.last().cloned() } else { Some(name.to_string()) };
    Import { path: Path { names, line: line(ident) }, name }
}

fn line(ident: &Ident) -> usize {
    ident.span().start().line
}

/// Collects the paths in items.
#[derive(Default)]
struct Used(Vec<Path>);

impl Used {
    /// A lone name that begins with a small letter may be a variable; what it could mean else, an import names.
    fn add(&mut self, names: Vec<String>, line: usize) {
        if names.len() > 1 || names[0].starts_with(char::is_uppercase) {
            self.0.push(Path { names, line });
        }
    }

    /// The paths in the tokens of a macro call or definition.
    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let begin = at;
            at += 1;
            match token {
                TokenTree::Group(group) => self.scan(group.stream()),
                TokenTree::Ident(first) => {
                    let mut names = vec![first.to_string()];
                    while let Some([a, b, TokenTree::Ident(next)]) = tokens.get(at..at + 3)
                        && is_punct(a, ':')
                        && is_punct(b, ':')
                    {
                        names.push(next.to_string());
                        at += 3;
                    }
                    if begins_path(&tokens[..begin], first) {
                        self.add(names, line(first));
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
}

/// Whether a name after these tokens begins a path: it is no field or method, no lifetime, no rest of a path in brackets, and no
/// variable of a macro (but `$crate`).
fn begins_path(before: &[TokenTree], name: &Ident) -> bool {
    match before {
        [.., last] if is_punct(last, '.') || is_punct(last, '\'') => false,
        [.., last] if is_punct(last, '$') => name == "crate",
        [.., one, two] => !(is_punct(one, ':') && is_punct(two, ':')),
        _ => true,
    }
}

fn is_punct(token: &TokenTree, c: char) -> bool {
    matches!(token, TokenTree::Punct(p) if p.as_char() == c)
}

impl<'ast> Visit<'ast> for Used {
    fn visit_item(&mut self, item: &'ast Item) {
        if !for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if !matches!(item, ImplItem::Fn(f) if for_tests(&f.attrs)) {
            visit::visit_impl_item(self, item);
        }
    }

    /// One in a function: what it brings in is used there.
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let mut imports = Vec::new();
        import(&item.tree, &mut Vec::new(), &mut imports);
        self.0.extend(imports.into_iter().map(|import| import.path));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let Some(first) = path.segments.first() {
            let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.add(names, line(&first.ident));
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.scan(call.tokens.clone());
    }

    /// `pub(super)` uses nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}
