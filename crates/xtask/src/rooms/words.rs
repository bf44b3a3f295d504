//! A Rust source as words and signs: comments, strings and characters are left out, so that what looks like a path in them
//! is none.

use std::iter::Peekable;
use std::str::Chars;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    /// `::`
    Path,
    Sign(char),
}

impl Token {
    pub(super) fn is(&self, word: &str) -> bool {
        matches!(self, Token::Word(own) if own == word)
    }
}

pub(super) fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = source.chars().peekable();
    while let Some(first) = chars.next() {
        match first {
            '/' if chars.peek() == Some(&'/') => while chars.next().is_some_and(|next| next != '\n') {},
            '/' if chars.peek() == Some(&'*') => skip_comment(&mut chars),
            '"' => skip_string(&mut chars),
            '\'' => skip_character(&mut chars),
            ':' if chars.next_if_eq(&':').is_some() => tokens.push(Token::Path),
            _ if first == '_' || first.is_alphanumeric() => {
                let mut word = String::from(first);
                while let Some(next) = chars.next_if(|next| *next == '_' || next.is_alphanumeric()) {
                    word.push(next);
                }
                let is_raw = matches!(word.as_str(), "r" | "br" | "cr") && skip_raw_string(&mut chars);
                // What stands before a string of bytes is no word either.
                let is_prefix = matches!(word.as_str(), "b" | "c") && chars.peek() == Some(&'"');
                if !is_raw && !is_prefix {
                    tokens.push(Token::Word(word));
                }
            }
            _ if first.is_whitespace() => {}
            _ => tokens.push(Token::Sign(first)),
        }
    }
    tokens
}

/// Behind `/`; comments lie in comments.
fn skip_comment(chars: &mut Peekable<Chars<'_>>) {
    let (mut depth, mut before) = (0, '/');
    for next in chars.by_ref() {
        match (before, next) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                before = next;
                continue;
            }
        }
        if depth == 0 {
            return;
        }
        before = ' ';
    }
}

/// Behind the opening quote.
fn skip_string(chars: &mut Peekable<Chars<'_>>) {
    while let Some(next) = chars.next() {
        match next {
            '\\' => drop(chars.next()),
            '"' => return,
            _ => {}
        }
    }
}

/// Behind `r`; whether a string stands there, and no word such as `r#type`.
fn skip_raw_string(chars: &mut Peekable<Chars<'_>>) -> bool {
    let mut ahead = chars.clone();
    let hashes = std::iter::from_fn(|| ahead.next_if_eq(&'#')).count();
    if ahead.next() != Some('"') {
        return false;
    }
    let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let rest: String = ahead.clone().collect();
    let len = rest.find(&end).map_or(rest.len(), |at| at + end.len());
    let skipped = rest[..len].chars().count();
    *chars = ahead;
    chars.by_ref().take(skipped).for_each(drop);
    true
}

/// Behind `'`: a character, or a lifetime, of which the word is left.
fn skip_character(chars: &mut Peekable<Chars<'_>>) {
    let mut ahead = chars.clone();
    match ahead.next() {
        Some('\\') => {
            chars.next();
            chars.next();
            while chars.next().is_some_and(|next| next != '\'') {}
        }
        Some(_) if ahead.next() == Some('\'') => {
            chars.next();
            chars.next();
        }
        _ => while chars.next_if(|next| *next == '_' || next.is_alphanumeric()).is_some() {},
    }
}
