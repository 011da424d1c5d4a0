//! The lists that API servers of different ages have.

/// What an API server has beside plain watches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Lists {
    /// Since 1.34: every page of a list comes from the server's cache; streaming lists, too.
    #[default]
    PagesFromCache,
    /// 1.32: streaming lists.
    Streaming,
    /// Older: pages.
    Pages,
}

impl Lists {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PagesFromCache, Self::Streaming, Self::Pages];

    /// The minor version of a server that has them.
    pub(super) fn minor_version(self) -> u32 {
        match self {
            Self::PagesFromCache => 36,
            Self::Streaming => 32,
            Self::Pages => 31,
        }
    }
}
