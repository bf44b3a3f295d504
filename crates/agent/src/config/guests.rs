//! `[guests]`: whom the VMs of failovers and tests run as.

use super::Misplaced;
use serde::Deserialize;
use toml::Spanned;

/// The user whose numbers guests get, unless another is named.
const USER: &str = "holdfast-guest";

/// What is said of the VMs that are started here.
#[derive(Debug, Clone)]
pub struct GuestsConfig {
    /// Each guest is one of the users that `/etc/subuid` has for this one.
    pub user: String,
    /// The first and the last of them, where they are said here.
    pub uids: Option<(u32, u32)>,
    /// Groups that no guest may have, for they may use what the agent serves: each with the setting that names it.
    pub kept_from: Vec<(String, String)>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGuests {
    user: Option<String>,
    uids: Option<Spanned<(u32, u32)>>,
}

impl RawGuests {
    pub(super) fn check(self) -> Result<GuestsConfig, Misplaced> {
        let refuse = |uids: &Spanned<(u32, u32)>| {
            let (first, last) = *uids.get_ref();
            let what = format!(
                "uids = [{first}, {last}] are no users to run guests as: give the first and the last, and not root's"
            );
            (uids.span().start, what)
        };
        // The last number stands for "nobody is meant" in system calls.
        let is_usable = |(first, last): (u32, u32)| first > 0 && first <= last && last < u32::MAX;
        match &self.uids {
            Some(uids) if !is_usable(*uids.get_ref()) => Err(refuse(uids)),
            uids => {
                let uids = uids.as_ref().map(|uids| *uids.get_ref());
                Ok(GuestsConfig {
                    user: self.user.unwrap_or_else(|| USER.into()),
                    uids,
                    kept_from: Vec::new(),
                })
            }
        }
    }
}
