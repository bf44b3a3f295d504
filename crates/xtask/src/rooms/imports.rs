//! What one file names of others: its child modules, and every path into its crate. What is for tests only does not count.

use super::words::{Token, tokens};
use std::collections::{HashMap, HashSet};

#[derive(Debug, Default)]
pub(super) struct Imports {
    /// Child modules in files of their own.
    pub(super) children: Vec<String>,
    /// Paths of `use`, and others that begin in this crate.
    pub(super) paths: Vec<Vec<String>>,
    /// What `use` brings in, by the name it has here.
    pub(super) names: HashMap<String, Vec<String>>,
    /// Modules that `use` brings all in of.
    pub(super) globs: Vec<Vec<String>>,
    /// What the file defines itself.
    pub(super) defined: HashSet<String>,
}

/// Words before the name of what is defined.
const DEFINE: [&str; 9] =
    ["const", "enum", "fn", "macro_rules", "static", "struct", "trait", "type", "union"];

impl Imports {
    pub(super) fn of(source: &str) -> Self {
        let mut imports = Self::default();
        let tokens = tokens(source);
        let mut reading = Reading { tokens: &tokens, at: 0, inline: Vec::new(), depth: 0 };
        while reading.at < tokens.len() {
            reading.item(&mut imports);
        }
        imports
    }
}

struct Reading<'a> {
    tokens: &'a [Token],
    at: usize,
    /// How deep in braces each module lies that is written into this file.
    inline: Vec<usize>,
    depth: usize,
}

impl Reading<'_> {
    fn peek(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead)
    }

    fn is_sign(&self, ahead: usize, sign: char) -> bool {
        self.peek(ahead) == Some(&Token::Sign(sign))
    }

    fn item(&mut self, imports: &mut Imports) {
        if self.is_for_tests() {
            self.skip_item();
        } else if self.tokens[self.at].is("use") && !self.is_sign(1, '<') {
            self.at += 1;
            self.tree(&mut Vec::new(), imports);
        } else if self.tokens[self.at].is("mod") {
            if let (Some(Token::Word(name)), true) = (self.peek(1), self.is_sign(2, ';')) {
                imports.children.push(name.clone());
            } else if self.is_sign(2, '{') {
                self.inline.push(self.depth);
            }
            // The brace is counted when it is met.
            self.at += 2;
        } else if self.tokens[self.at].is("pub") && self.peek(2).is_some_and(|token| token.is("in")) {
            // To be seen in a module is not to know it.
            self.at += self.tokens[self.at..].iter().take_while(|token| **token != Token::Sign(')')).count();
        } else if let Token::Word(word) = &self.tokens[self.at] {
            if let (true, Some(Token::Word(name))) = (DEFINE.contains(&word.as_str()), self.peek(1)) {
                imports.defined.insert(name.clone());
            }
            self.path(imports);
        } else {
            self.sign();
        }
    }

    fn sign(&mut self) {
        match self.tokens[self.at] {
            Token::Sign('{') => self.depth += 1,
            Token::Sign('}') => {
                self.depth = self.depth.saturating_sub(1);
                self.inline.pop_if(|begun| *begun == self.depth);
            }
            _ => {}
        }
        self.at += 1;
    }

    /// Whether `#[cfg(test)]` stands here.
    fn is_for_tests(&self) -> bool {
        let inside = |ahead, word: &str| self.peek(ahead).is_some_and(|token| token.is(word));
        self.is_sign(0, '#')
            && self.is_sign(1, '[')
            && inside(2, "cfg")
            && inside(4, "test")
            && self.is_sign(5, ')')
    }

    /// Skips attributes and what they are of: up to its semicolon, or the end of its braces.
    fn skip_item(&mut self) {
        let mut depth = 0;
        let is_use = self.tokens[self.at..].iter().find(|t| t.is("use") || t.is("mod") || t.is("fn"));
        let ends_with_brace = !is_use.is_some_and(|token| token.is("use"));
        while let Some(token) = self.peek(0) {
            match token {
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => depth -= 1,
                _ => {}
            }
            let is_end = match token {
                Token::Sign(';') => depth == 0,
                Token::Sign('}') => depth == 0 && ends_with_brace,
                _ => false,
            };
            self.at += 1;
            if is_end {
                return;
            }
        }
    }

    /// A path outside of `use`.
    fn path(&mut self, imports: &mut Imports) {
        let mut path = Vec::new();
        while let Some(Token::Word(word)) = self.peek(0) {
            path.push(word.clone());
            self.at += 1;
            if self.peek(0) != Some(&Token::Path) {
                break;
            }
            self.at += 1;
        }
        if path.len() > 1 {
            imports.paths.push(self.as_of_this_file(path));
        }
    }

    /// What follows `prefix` in a `use`.
    fn tree(&mut self, prefix: &mut Vec<String>, imports: &mut Imports) {
        let begun = prefix.len();
        let mut name = None;
        while let Some(token) = self.peek(0).cloned() {
            match token {
                Token::Word(word) if word == "as" => {
                    if let Some(Token::Word(alias)) = self.peek(1) {
                        name = Some(alias.clone());
                    }
                    self.at += 1;
                }
                Token::Word(word) => {
                    let is_self = word == "self" && !prefix.is_empty();
                    prefix.extend((!is_self).then_some(word));
                }
                Token::Sign('{') => {
                    self.at += 1;
                    while self.peek(0).is_some() && !self.is_sign(0, '}') {
                        self.tree(prefix, imports);
                        self.at += usize::from(self.is_sign(0, ','));
                    }
                    self.at += 1;
                    prefix.truncate(begun);
                    return;
                }
                Token::Sign('*') => name = Some(String::from("*")),
                Token::Path => {}
                Token::Sign(_) => break,
            }
            self.at += 1;
        }
        if prefix.len() > begun || name.is_some() || begun > 0 {
            let path = self.as_of_this_file(prefix.clone());
            match name.or(path.last().cloned()) {
                Some(name) if name == "*" => imports.globs.push(path.clone()),
                name => imports.names.extend(name.map(|name| (name, path.clone()))),
            }
            imports.paths.push(path);
        }
        prefix.truncate(begun);
    }

    /// A path as it is for the file's own module: within one that is written into it, `super` is this file.
    fn as_of_this_file(&self, mut path: Vec<String>) -> Vec<String> {
        let up = path.iter().take_while(|word| *word == "super").count().min(self.inline.len());
        if up > 0 {
            path.drain(..up);
            path.insert(0, String::from("self"));
        }
        path
    }
}
