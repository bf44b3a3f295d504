//! The files of one target, a library or a program, and which of them knows which.
//!
//! A path is followed to the file that has what it names: through modules, and through what they re-export. To be declared
//! a child of a file is not to be known by it. What a method of a type does that lies in another file is not seen.

use super::imports::Imports;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Names that lead to names, at most so many times.
const FOLLOWED_MAX: usize = 8;

#[derive(Debug)]
pub(super) struct Graph {
    pub(super) files: Vec<PathBuf>,
    /// Of each file, by the same index, the others it knows.
    pub(super) knows: Vec<BTreeSet<usize>>,
}

struct Module {
    parent: Option<usize>,
    children: HashMap<String, usize>,
    imports: Imports,
}

impl Graph {
    /// The graph of the target that begins in the file `root`.
    pub(super) fn of(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Self {
        let (mut files, mut modules) = (Vec::new(), Vec::new());
        let folder = root.parent().unwrap_or(root).to_owned();
        add(root, &folder, None, read, &mut files, &mut modules);
        let tree = Tree(modules);
        let knows = (0..files.len()).map(|from| tree.known_by(from)).collect();
        Self { files, knows }
    }

    /// Files that know one another, directly or through others, where they are more than two.
    pub(super) fn circles(&self) -> Vec<BTreeSet<usize>> {
        let reach: Vec<BTreeSet<usize>> = (0..self.files.len()).map(|from| self.reached_from(from)).collect();
        let mut circles: Vec<BTreeSet<usize>> = Vec::new();
        for from in 0..reach.len() {
            let circle: BTreeSet<usize> =
                reach[from].iter().copied().filter(|to| reach[*to].contains(&from)).collect();
            if circle.len() > 2 && !circles.contains(&circle) {
                circles.push(circle);
            }
        }
        circles
    }

    fn reached_from(&self, from: usize) -> BTreeSet<usize> {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(at) = open.pop() {
            open.extend(self.knows[at].iter().filter(|to| reached.insert(**to)));
        }
        reached
    }
}

/// Adds the module in `file`, whose children lie in `folder`, and them.
fn add(
    file: &Path,
    folder: &Path,
    parent: Option<usize>,
    read: &dyn Fn(&Path) -> Option<String>,
    files: &mut Vec<PathBuf>,
    modules: &mut Vec<Module>,
) -> Option<usize> {
    let imports = Imports::of(&read(file)?);
    let own = modules.len();
    let names = imports.children.clone();
    files.push(file.to_owned());
    modules.push(Module { parent, children: HashMap::new(), imports });
    for name in names {
        let inside = folder.join(&name);
        let beside = folder.join(format!("{name}.rs"));
        let child = add(&beside, &inside, Some(own), read, files, modules)
            .or_else(|| add(&inside.join("mod.rs"), &inside, Some(own), read, files, modules));
        modules[own].children.extend(child.map(|child| (name, child)));
    }
    Some(own)
}

struct Tree(Vec<Module>);

impl Tree {
    fn known_by(&self, from: usize) -> BTreeSet<usize> {
        let paths = self.0[from].imports.paths.iter();
        paths.filter_map(|path| self.follow(from, path, 0)).filter(|to| *to != from).collect()
    }

    /// The module that has what `path` names in `from`; none where that is of another crate.
    fn follow(&self, from: usize, path: &[String], followed: usize) -> Option<usize> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => 0,
            "self" => from,
            "super" => self.0[from].parent?,
            name => *self.0[from].children.get(name)?,
        };
        while let Some((name, more)) = rest.split_first() {
            let module = &self.0[at];
            let next = match (name.as_str(), module.children.get(name), module.imports.names.get(name)) {
                ("super", _, _) => module.parent,
                (_, Some(child), _) => Some(*child),
                (_, None, Some(path)) if followed < FOLLOWED_MAX => self.follow(at, path, followed + 1),
                (_, None, None) if !module.imports.defined.contains(name) => {
                    self.in_globs(at, name, followed)
                }
                _ => None,
            };
            let Some(next) = next else { break };
            (at, rest) = (next, more);
        }
        Some(at)
    }

    /// The module that defines `name`, of those that `at` brings all in of.
    fn in_globs(&self, at: usize, name: &str, followed: usize) -> Option<usize> {
        let globs = self.0[at].imports.globs.iter().filter(|_| followed < FOLLOWED_MAX);
        let modules = globs.filter_map(|path| self.follow(at, path, followed + 1));
        modules.into_iter().find(|module| self.0[*module].imports.defined.contains(name))
    }
}
