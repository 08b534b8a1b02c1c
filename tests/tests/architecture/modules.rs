//! The tree of modules of all crates, and who uses whom.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{self, Content};

/// The names from a crate down to a module.
pub type ModulePath = Vec<String>;

/// One place where a module uses another.
#[derive(Clone, Debug)]
pub struct Place {
    /// `file:line`.
    pub at: String,
    /// The path that stands there.
    pub path: String,
}

/// The names in modules whose imports are being followed: some lead in circles.
type Seen = BTreeSet<(usize, String)>;

/// Who uses whom, with the first place where.
pub type Uses = BTreeMap<(ModulePath, ModulePath), Place>;

/// A module; in a file of its own, or inside that of another.
struct Module {
    path: ModulePath,
    file: String,
    parent: Option<usize>,
    /// The module whose file it stands in.
    owner: usize,
    children: BTreeMap<String, usize>,
    content: Content,
}

/// Where a module stands.
struct Spot {
    file: String,
    /// Where the files of its modules are.
    folder: String,
    path: ModulePath,
    parent: Option<usize>,
    /// The module whose file it stands in, if that is another.
    owner: Option<usize>,
}

/// What a path leads to.
#[derive(Clone, Copy)]
enum Meaning {
    Module(usize),
    /// Something that this module defines.
    Item(usize),
}

struct Tree<'a> {
    files: &'a BTreeMap<String, String>,
    modules: Vec<Module>,
    /// Libraries by the name that code calls them.
    libraries: BTreeMap<String, usize>,
}

/// Who uses whom in the crates below `files`: `<folder>/src/lib.rs`, `main.rs` and `bin/*`, with the modules that they name.
///
/// # Errors
/// A file that cannot be parsed, or a module without a file.
pub fn uses(files: &BTreeMap<String, String>) -> Result<Uses, String> {
    let mut tree = Tree { files, modules: Vec::new(), libraries: BTreeMap::new() };
    for file in files.keys() {
        if let Some((name, library)) = tree.root(file) {
            let root = tree.file(file.clone(), vec![name], None)?;
            tree.libraries.extend(library.map(|library| (library, root)));
        }
    }
    Ok(tree.uses())
}

impl Tree<'_> {
    /// Of a crate's root its name, and for a library the name that code calls it.
    fn root(&self, file: &str) -> Option<(String, Option<String>)> {
        let is_crate = |folder: &str| {
            // Below another folder only a package of its own: `src` may be the name of a folder in a crate, too.
            !folder.contains('/') || self.files.contains_key(&format!("{folder}/Cargo.toml"))
        };
        let (folder, rest) = file.split_once("/src/").filter(|(folder, _)| is_crate(folder))?;
        let is_library = self.files.contains_key(&format!("{folder}/src/lib.rs"));
        if rest == "lib.rs" {
            return Some((folder.to_owned(), Some(self.package(folder).replace('-', "_"))));
        }
        let program = match rest.strip_prefix("bin/") {
            Some(rest) => rest.strip_suffix("/main.rs").or_else(|| rest.strip_suffix(".rs"))?,
            None => rest.strip_suffix(".rs").filter(|name| *name == "main")?,
        };
        if program.contains('/') {
            return None;
        }
        Some((if is_library { format!("{folder}/{program}") } else { folder.to_owned() }, None))
    }

    /// The name of the package in a folder.
    fn package(&self, folder: &str) -> String {
        let manifest = self.files.get(&format!("{folder}/Cargo.toml")).map_or("", String::as_str);
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
        name.unwrap_or(folder).to_owned()
    }

    /// Adds the module of a file, and all below it.
    fn file(&mut self, file: String, path: ModulePath, parent: Option<usize>) -> Result<usize, String> {
        let content =
            source::read(&self.files[&file]).map_err(|e| format!("{file}:{}: {e}", e.span().start().line))?;
        let folder = match file.rsplit_once('/') {
            Some((folder, name)) if name == "mod.rs" || parent.is_none() => folder.to_owned(),
            _ => file.trim_end_matches(".rs").to_owned(),
        };
        self.module(content, Spot { file, folder, path, parent, owner: None })
    }

    /// Adds a module, and all below it.
    fn module(&mut self, mut content: Content, spot: Spot) -> Result<usize, String> {
        let Spot { file, folder, path, parent, owner } = spot;
        let this = self.modules.len();
        let owner = owner.unwrap_or(this);
        let inner = std::mem::take(&mut content.modules);
        self.modules.push(Module {
            path: path.clone(),
            file: file.clone(),
            parent,
            owner,
            children: BTreeMap::new(),
            content,
        });
        for (name, content) in inner {
            let path: ModulePath = path.iter().chain([&name]).cloned().collect();
            let folder = format!("{folder}/{name}");
            let child = if let Some(content) = content {
                let (file, parent, owner) = (file.clone(), Some(this), Some(owner));
                self.module(content, Spot { file, folder, path, parent, owner })?
            } else {
                let candidates = [format!("{folder}.rs"), format!("{folder}/mod.rs")];
                let found = candidates.into_iter().find(|file| self.files.contains_key(file));
                let found = found.ok_or_else(|| format!("{file}: no file of module {name} (a #[path]?)"))?;
                self.file(found, path, Some(this))?
            };
            self.modules[this].children.insert(name, child);
        }
        Ok(this)
    }

    fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        for (at, module) in self.modules.iter().enumerate() {
            let imports = module.content.imports.iter().map(|import| &import.path);
            for path in imports.chain(&module.content.paths) {
                let Some(Meaning::Module(to) | Meaning::Item(to)) =
                    self.meaning(at, &path.names, &mut Seen::new())
                else {
                    continue;
                };
                let (from, to) = (&self.modules[module.owner], &self.modules[self.modules[to].owner]);
                if from.path != to.path {
                    uses.entry((from.path.clone(), to.path.clone())).or_insert_with(|| Place {
                        at: format!("{}:{}", module.file, path.line),
                        path: path.names.join("::"),
                    });
                }
            }
        }
        uses
    }

    /// What a path in module `at` means; none if it leads out of the workspace, or is a name of the language.
    fn meaning(&self, at: usize, path: &[String], seen: &mut Seen) -> Option<Meaning> {
        let (first, rest) = path.split_first()?;
        let mut meaning = match first.as_str() {
            "crate" => Meaning::Module(self.crate_of(at)),
            "self" => Meaning::Module(at),
            "super" => Meaning::Module(self.modules[at].parent?),
            name => match self.name(at, name, seen) {
                Some(meaning) => meaning,
                None => Meaning::Module(*self.libraries.get(name)?),
            },
        };
        for name in rest {
            // What is in an item (a variant, a function of a type) is where the item is.
            let Meaning::Module(module) = meaning else { break };
            meaning = match name.as_str() {
                "super" => Meaning::Module(self.modules[module].parent?),
                // What no file spells out, a macro defines there.
                name => self.name(module, name, seen).unwrap_or(Meaning::Item(module)),
            };
        }
        Some(meaning)
    }

    /// What a name means in a module.
    fn name(&self, at: usize, name: &str, seen: &mut Seen) -> Option<Meaning> {
        let module = &self.modules[at];
        if let Some(child) = module.children.get(name) {
            return Some(Meaning::Module(*child));
        }
        if module.content.names.contains(name) {
            return Some(Meaning::Item(at));
        }
        if !seen.insert((at, name.to_owned())) {
            return None;
        }
        let found = self.imported(at, name, seen).or_else(|| self.exported(at, name));
        seen.remove(&(at, name.to_owned()));
        found
    }

    /// A name that a `use` of the module brings in: by itself, else among all names of another module.
    fn imported(&self, at: usize, name: &str, seen: &mut Seen) -> Option<Meaning> {
        let imports = &self.modules[at].content.imports;
        let mut named = imports.iter().filter(|import| import.name.as_deref() == Some(name));
        if let Some(found) = named.find_map(|import| self.meaning(at, &import.path.names, seen)) {
            return Some(found);
        }
        imports.iter().filter(|import| import.name.is_none()).find_map(|import| {
            match self.meaning(at, &import.path.names, seen)? {
                Meaning::Module(module) => self.name(module, name, seen),
                Meaning::Item(_) => None,
            }
        })
    }

    /// A macro that is exported from anywhere in the crate, if `at` is the crate's root.
    fn exported(&self, at: usize, name: &str) -> Option<Meaning> {
        let root = &self.modules[at];
        if root.parent.is_some() {
            return None;
        }
        let found =
            self.modules.iter().position(|m| m.path[0] == root.path[0] && m.content.exported.contains(name));
        found.map(Meaning::Item)
    }

    fn crate_of(&self, at: usize) -> usize {
        self.modules[at].parent.map_or(at, |parent| self.crate_of(parent))
    }
}
