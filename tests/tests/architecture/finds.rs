//! Tests of the search itself, on small crates of source text: each has a circle, or something that only looks like one.

use std::collections::BTreeMap;

use super::{circles::circles, is_too_long, modules::uses};

/// The circles in these files, each as its way.
fn ways(files: &[(&str, &str)]) -> Vec<String> {
    let files: BTreeMap<String, String> =
        files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    let lines = |circle: &super::circles::Circle| circle.to_string().lines().next().unwrap().to_owned();
    circles(&uses(&files).unwrap()).iter().map(lines).collect()
}

/// The same in a crate `a` whose root has these modules.
fn ways_in_crate(modules: &[(&str, &str)]) -> Vec<String> {
    let root: String = modules.iter().map(|(name, _)| format!("mod {name};\n")).collect();
    let mut files = vec![("a/src/lib.rs".to_owned(), root)];
    files.extend(modules.iter().map(|(name, text)| (format!("a/src/{name}.rs"), (*text).to_owned())));
    ways(&files.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect::<Vec<_>>())
}

#[test]
fn two_files_that_use_each_other_are_a_circle_and_each_place_is_named() {
    let files = [
        ("a/src/lib.rs", "mod b;\nmod c;\nmod d;"),
        ("a/src/b.rs", "//! B.\nuse crate::c::C;\npub struct B(C);"),
        ("a/src/c.rs", "pub struct C;\nfn f() -> super::b::B { todo!() }"),
        ("a/src/d.rs", "use crate::{b::B, c::C};"),
    ];
    let files: BTreeMap<String, String> = files.map(|(file, text)| (file.to_owned(), text.to_owned())).into();
    let found = circles(&uses(&files).unwrap());
    let [circle] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(circle.members, ["b", "c"]);
    let want = "a circle in a: b → c → b\n    b → c: a/src/b.rs:2 uses crate::c::C\n    c → b: a/src/c.rs:2 uses super::b::B\n";
    assert_eq!(circle.to_string(), want);
}

#[test]
fn files_that_use_each_other_one_way_are_none() {
    let none: [&str; 0] = [];
    assert_eq!(ways_in_crate(&[("b", "use crate::c;"), ("c", "use crate::d;"), ("d", "use std::io;")]), none);
}

#[test]
fn a_long_circle_is_shown_by_a_shortest_way() {
    let found = ways_in_crate(&[
        ("b", "use crate::c;"),
        ("c", "use crate::d; use crate::e;"),
        ("d", "use crate::e;"),
        ("e", "use crate::b;"),
    ]);
    assert_eq!(found, ["a circle in a: b → c → e → b"]);
}

/// The way from `b` to `c` and back, where `b` says this.
fn circle_by(text: &str) -> bool {
    let found = ways_in_crate(&[("b", text), ("c", "use crate::b::B; pub struct C; pub mod inner {}")]);
    assert!(found.is_empty() || found == ["a circle in a: b → c → b"], "{text}: {found:?}");
    !found.is_empty()
}

#[test]
fn every_way_to_name_another_module_counts() {
    for text in [
        "use crate::c::C as Other;",
        "use super::{c::{self}};",
        "use crate::c::*;",
        "pub use self::super::c::inner;",
        "struct B { field: Vec<crate::c::C> }",
        "fn f() { use crate::c::C; }",
        "fn f() { let _ = Vec::<super::c::C>::new(); }",
        "fn f(x: &dyn std::any::Any) { if let Some(crate::c::C) = x.downcast_ref() {} }",
        "fn f() { println!(\"{:?}\", [1, crate::c::VALUE]); }",
        "macro_rules! m { () => { $crate::c::C } }",
        "impl crate::c::Trait for u8 {}",
        "mod within { fn f() { super::super::c::f() } }",
    ] {
        assert!(circle_by(text), "{text}");
    }
}

#[test]
fn what_only_looks_like_a_use_does_not_count() {
    for text in [
        "#[cfg(test)] mod tests { use crate::c::C; }",
        "#[cfg(all(test, unix))] use crate::c::C;",
        "#[cfg(test)] fn f() -> crate::c::C { crate::c::C }",
        "struct B; impl B { #[cfg(test)] fn f() { crate::c::f() } }",
        "//! See [`crate::c`].\n/// And [`crate::c::C`].\nstruct B;",
        "const TEXT: &str = \"crate::c::C\";",
        "pub(in crate) struct C; fn f() { C::new() }",
        "fn f(x: X) { x.c(); println!(\"{}\", x.c::<u8>()); }",
        "use std::c::C;",
    ] {
        assert!(!circle_by(text), "{text}");
    }
    assert!(circle_by("#[cfg(any(test, unix))] use crate::c::C;"), "not for tests only");
    assert!(circle_by("#[cfg(not(test))] use crate::c::C;"), "never in tests");
}

#[test]
fn a_re_export_is_a_use_of_the_file_that_defines_it() {
    // `b` takes from its parent what `c` defines.
    let parent = ("a/src/lib.rs", "mod b; mod c; pub use c::C; pub use b::*;");
    let (b, c) = ("pub struct B; use crate::C;", "use super::B; pub struct C;");
    assert_eq!(ways(&[parent, ("a/src/b.rs", b), ("a/src/c.rs", c)]), ["a circle in a: b → c → b"]);
    // And what the parent defines by itself is no use of a sister.
    let parent = ("a/src/lib.rs", "mod b; mod c; pub struct C; pub use b::B;");
    assert_eq!(ways(&[parent, ("a/src/b.rs", b), ("a/src/c.rs", "use super::B;")]), Vec::<String>::new());
}

#[test]
fn an_exported_macro_is_a_use_of_the_file_that_defines_it() {
    let b = "#[macro_export] macro_rules! made { () => { $crate::c::C } }";
    assert_eq!(ways_in_crate(&[("b", b), ("c", "fn f() { crate::made!() }")]), ["a circle in a: b → c → b"]);
}

#[test]
fn imports_that_lead_in_circles_end() {
    assert_eq!(
        ways_in_crate(&[
            ("b", "pub use crate::c::*; fn f() -> X {}"),
            ("c", "pub use crate::b::*; fn g() -> X {}")
        ]),
        ["a circle in a: b → c → b"]
    );
}

#[test]
fn two_folders_are_a_circle_even_if_no_two_files_are() {
    let found = ways(&[
        ("a/src/lib.rs", "mod one; mod two;"),
        ("a/src/one/mod.rs", "mod x; mod y;"),
        ("a/src/one/x.rs", "use crate::two::v::V;"),
        ("a/src/one/y.rs", "pub struct Y;"),
        ("a/src/two/mod.rs", "pub mod v; pub mod w;"),
        ("a/src/two/v.rs", "pub struct V;"),
        ("a/src/two/w.rs", "fn f() { crate::one::y::f() }"),
    ]);
    assert_eq!(found, ["a circle in a: one → two → one"]);
}

#[test]
fn a_parent_and_its_children_may_use_each_other() {
    let found = ways(&[
        ("a/src/lib.rs", "mod one;"),
        ("a/src/one/mod.rs", "mod x; use x::X; pub struct Context;"),
        ("a/src/one/x.rs", "use super::Context; pub struct X;"),
    ]);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn two_crates_are_a_circle() {
    let found = ways(&[
        ("a/Cargo.toml", "[package]\nname = \"the-a\""),
        ("a/src/lib.rs", "mod x;"),
        ("a/src/x.rs", "use b::B;"),
        ("b/src/lib.rs", "use the_a::x;"),
        ("b/src/main.rs", "fn main() { b::f() }"),
    ]);
    assert_eq!(found, ["a circle in the workspace: a → b → a"]);
}

#[test]
fn a_crate_in_the_folder_of_another_is_one_of_its_own() {
    let found = ways(&[
        ("a/src/lib.rs", "use inner::x;"),
        ("a/b/Cargo.toml", "[package]\nname = \"inner\""),
        ("a/b/src/lib.rs", "pub mod x; mod y;"),
        ("a/b/src/x.rs", "use crate::y;"),
        ("a/b/src/y.rs", "use crate::x;"),
    ]);
    assert_eq!(found, ["a circle in a/b: x → y → x"]);
}

#[test]
fn a_module_without_a_file_and_a_text_that_is_no_rust_are_errors() {
    let error = |text: &str| uses(&[("a/src/lib.rs".to_owned(), text.to_owned())].into()).unwrap_err();
    assert_eq!(error("mod b;"), "a/src/lib.rs: no file of module b (a #[path]?)");
    assert!(error("\nfn fn").starts_with("a/src/lib.rs:2: "), "{}", error("\nfn fn"));
}

#[test]
fn a_long_file_needs_its_reason_in_its_header() {
    let file = |header: &str, lines: usize| format!("{header}\n{}", "x\n".repeat(lines));
    assert!(!is_too_long(&file("//! Short.", 599)));
    assert!(is_too_long(&file("//! Long.", 600)));
    assert!(is_too_long(&file("use x;\n//! This is over 600 lines because nobody split it.", 600)));
    assert!(!is_too_long(&file(
        "//! A table.\n//!\n//! It is over 600 lines because the standard's table is.",
        600
    )));
}
