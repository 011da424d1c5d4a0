//! What the files said when they were last read, and what of it has changed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use compiler::model::Store;
use compiler::model::convert::Problem;
use compiler::model::objects::{Change, Object, ObjectRef};
use tracing::info;

use super::document::{self, Contents, Format};
use super::{ManifestProblem, SourceError};

/// The extensions that are read in a directory, as `kubectl apply -f` does.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// A file this young may change again without a new timestamp: kernel
/// timestamps advance by ticks of up to 10 ms, some file systems by 2 s.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_secs(2);

/// Tells whether a file is still the one that was read.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Everything that is known of the manifests, without the objects themselves:
/// those live downstream, here is only a fingerprint of each.
#[derive(Debug)]
pub(super) struct Catalog {
    roots: Vec<Root>,
    /// Every file once, in the order in which they count.
    order: Vec<PathBuf>,
    files: HashMap<PathBuf, FileState>,
    /// What was handed on, by its fingerprint.
    handed_on: HashMap<ObjectRef, u64>,
    /// Objects that were reported to be in two places.
    duplicates: HashSet<ObjectRef>,
}

/// A path that the operator gave.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    /// Its files when it could last be read, by name.
    files: Vec<PathBuf>,
    is_lost: bool,
}

#[derive(Debug, Default)]
struct FileState {
    /// `None`: read it again, whatever the timestamps say.
    stamp: Option<Stamp>,
    documents: Vec<DocumentState>,
    /// Objects that the file had before a mistake came in. They stay until the
    /// mistake is gone: nothing programmed is lost by a slip of the pen.
    kept: Vec<(ObjectRef, u64)>,
}

#[derive(Debug)]
struct DocumentState {
    /// Fingerprint of its text; `None`: parse it again.
    text: Option<u64>,
    objects: Vec<(ObjectRef, u64)>,
    is_mistaken: bool,
}

/// What a reading found out, beside the objects.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// What can't be used; only what is new.
    pub(super) problems: Vec<ManifestProblem>,
    /// Paths that could be read before and can't be any more.
    pub(super) lost: Vec<String>,
}

/// Which object counts: its fingerprint and its file, as an index of `order`.
type Valid<'a> = HashMap<&'a ObjectRef, (u64, usize)>;

impl Catalog {
    /// Nothing read yet.
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            roots: paths.into_iter().map(|path| Root { path, files: Vec::new(), is_lost: false }).collect(),
            order: Vec::new(),
            files: HashMap::new(),
            handed_on: HashMap::new(),
            duplicates: HashSet::new(),
        }
    }

    /// The paths that were asked for.
    pub(super) fn roots(&self) -> impl Iterator<Item = &Path> {
        self.roots.iter().map(|root| root.path.as_path())
    }

    /// The files behind them, when they were last looked at.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.order
    }

    /// The first reading: hands every object on as soon as it is parsed, in
    /// path order, so that no more than a document is held. An object that is
    /// in two places is handed on twice, the valid one last.
    ///
    /// # Errors
    /// A path can't be read at all.
    pub(super) fn load(&mut self, mut hand_on: impl FnMut(Object)) -> Result<Report, SourceError> {
        let mut report = Report::default();
        for root in &mut self.roots {
            root.files =
                list(&root.path).map_err(|source| SourceError::UnreadablePath { path: root.path.clone(), source })?;
            if root.files.is_empty() {
                report.problems.push(ManifestProblem::empty(&root.path));
            }
        }
        self.order_files();
        for path in self.order.clone() {
            self.read(&path, &mut report, &mut |_, object| hand_on(object));
        }
        let (valid, covered) = self.valid();
        let handed_on = valid.into_iter().map(|(reference, (hash, _))| (reference.clone(), hash)).collect();
        self.report_duplicates(covered, &mut report);
        self.handed_on = handed_on;
        Ok(report)
    }

    /// Reads what has changed since, and returns the difference.
    pub(super) fn rescan(&mut self) -> (Vec<Change>, Report) {
        let mut report = Report::default();
        self.relist(&mut report);
        let mut parsed: HashMap<(usize, ObjectRef), Object> = HashMap::new();
        for (index, path) in self.order.clone().iter().enumerate() {
            self.read(path, &mut report, &mut |reference, object| {
                parsed.insert((index, reference), object);
            });
        }
        let mut read_again = HashSet::new();
        loop {
            match self.difference(&parsed, &read_again) {
                Ok((changes, covered)) => {
                    self.report_duplicates(covered, &mut report);
                    return (changes, report);
                }
                Err(index) => {
                    let path = self.order[index].clone();
                    if let Some(state) = self.files.get_mut(&path) {
                        state.forget_text();
                    }
                    self.read(&path, &mut report, &mut |reference, object| {
                        parsed.insert((index, reference), object);
                    });
                    read_again.insert(index);
                }
            }
        }
    }

    fn relist(&mut self, report: &mut Report) {
        for root in &mut self.roots {
            match list(&root.path) {
                Ok(files) => {
                    if files.is_empty() && !root.files.is_empty() {
                        report.problems.push(ManifestProblem::empty(&root.path));
                    }
                    if root.is_lost {
                        info!(path = %root.path.display(), "manifests can be read again");
                    }
                    root.is_lost = false;
                    root.files = files;
                }
                Err(source) => {
                    if !root.is_lost {
                        let error = SourceError::UnreadablePath { path: root.path.clone(), source };
                        report.lost.push(format!("{error}; what it held stays programmed"));
                    }
                    root.is_lost = true;
                }
            }
        }
        self.order_files();
    }

    /// The roots in the order they were given, their files by name. Where a
    /// file is reached twice, its last place counts.
    fn order_files(&mut self) {
        let mut seen = HashSet::new();
        let files = self.roots.iter().flat_map(|root| &root.files).collect::<Vec<_>>();
        let mut order: Vec<_> = files.into_iter().rev().filter(|path| seen.insert(*path)).cloned().collect();
        order.reverse();
        let wanted: HashSet<_> = order.iter().collect();
        self.files.retain(|path, _| wanted.contains(path));
        self.order = order;
    }

    /// Brings the state of one file up to date; documents whose text is the
    /// same as before are not parsed again.
    fn read(&mut self, path: &Path, report: &mut Report, parsed: &mut dyn FnMut(ObjectRef, Object)) {
        let state = self.files.entry(path.to_owned()).or_default();
        let stamp = Stamp::of(path);
        if stamp.is_some() && state.stamp == stamp {
            return;
        }
        state.stamp = stamp;
        let text = match read_text(path) {
            Ok(text) => text,
            Err(what) => {
                report.problems.push(ManifestProblem::file(path, what));
                return;
            }
        };
        // A program that writes in place truncates first, and may take its time.
        if text.is_empty() && !state.documents.is_empty() {
            report.problems.push(ManifestProblem::emptied(path));
            return;
        }
        let format = Format::of(path);
        let mut before: HashMap<u64, DocumentState> = HashMap::new();
        let mut missing: HashMap<ObjectRef, u64> = state.kept.drain(..).collect();
        for document in state.documents.drain(..) {
            missing.extend(document.objects.iter().cloned());
            if let Some(text) = document.text {
                before.insert(text, document);
            }
        }
        for (index, document) in document::split(&text, format).into_iter().enumerate() {
            let content = &text[document.range];
            let fingerprint = hash_of(content);
            let known = before.remove(&fingerprint).unwrap_or_else(|| {
                let contents = document::parse(content, document.line, format);
                let position = Position { path, document: index + 1, line: document.line };
                take_in(contents, fingerprint, &position, report, parsed)
            });
            for (reference, _) in &known.objects {
                missing.remove(reference);
            }
            state.documents.push(known);
        }
        if state.documents.iter().any(|document| document.is_mistaken) {
            state.kept = missing.into_iter().collect();
        }
    }

    /// The object that counts is the last in path order; `covered` are those
    /// that don't, with both files.
    fn valid(&self) -> (Valid<'_>, Vec<(ObjectRef, usize, usize)>) {
        let mut valid = Valid::new();
        let mut covered = Vec::new();
        for (index, path) in self.order.iter().enumerate() {
            let Some(state) = self.files.get(path) else { continue };
            let stated = state.documents.iter().flat_map(|document| &document.objects);
            for (reference, hash) in state.kept.iter().chain(stated) {
                if let Some((_, earlier)) = valid.insert(reference, (*hash, index)) {
                    covered.push((reference.clone(), earlier, index));
                }
            }
        }
        (valid, covered)
    }

    /// What to hand on so that downstream holds what counts now.
    ///
    /// # Errors
    /// The file to read again: it has not changed, but an object of it counts
    /// again, since the one that covered it is gone.
    #[expect(clippy::type_complexity, reason = "both lists are taken apart at once by the only caller")]
    fn difference(
        &mut self,
        parsed: &HashMap<(usize, ObjectRef), Object>,
        read_again: &HashSet<usize>,
    ) -> Result<(Vec<Change>, Vec<(ObjectRef, usize, usize)>), usize> {
        let (valid, covered) = self.valid();
        let mut changes = Vec::new();
        let mut hashes = Vec::new();
        for (reference, (hash, index)) in &valid {
            if self.handed_on.get(*reference) == Some(hash) {
                continue;
            }
            match parsed.get(&(*index, (*reference).clone())) {
                Some(object) => {
                    changes.push(Change::Apply(object.clone()));
                    hashes.push(((*reference).clone(), *hash));
                }
                // Its text is gone meanwhile or was never right: what is
                // programmed of it stays as it is.
                None if read_again.contains(index) => {}
                None => return Err(*index),
            }
        }
        let gone: Vec<_> = self.handed_on.keys().filter(|reference| !valid.contains_key(reference)).cloned().collect();
        self.handed_on.extend(hashes);
        for reference in gone {
            self.handed_on.remove(&reference);
            changes.push(Change::Delete(reference));
        }
        Ok((changes, covered))
    }

    fn report_duplicates(&mut self, covered: Vec<(ObjectRef, usize, usize)>, report: &mut Report) {
        for (reference, earlier, later) in &covered {
            if !self.duplicates.contains(reference) {
                report.problems.push(ManifestProblem::duplicate(reference, &self.order[*earlier], &self.order[*later]));
            }
        }
        self.duplicates = covered.into_iter().map(|(reference, ..)| reference).collect();
    }
}

impl FileState {
    fn forget_text(&mut self) {
        self.stamp = None;
        for document in &mut self.documents {
            document.text = None;
        }
    }
}

/// Where a document is.
struct Position<'a> {
    path: &'a Path,
    document: usize,
    line: usize,
}

/// Hands a document's objects on and remembers what it said.
fn take_in(
    contents: Contents,
    text: u64,
    position: &Position<'_>,
    report: &mut Report,
    parsed: &mut dyn FnMut(ObjectRef, Object),
) -> DocumentState {
    for name in contents.skipped {
        info!(file = %position.path.display(), line = position.line, "skipped {name}: a proxy has no use for this kind");
    }
    let is_mistaken = !contents.mistakes.is_empty();
    for mistake in contents.mistakes {
        report.problems.push(ManifestProblem {
            path: position.path.to_owned(),
            document: Some(position.document),
            line: mistake.line.or(Some(position.line)),
            object: mistake.object,
            what: mistake.what,
            remedy: "correct it; the other documents are used, and what was programmed before stays",
        });
    }
    let mut objects = Vec::with_capacity(contents.objects.len());
    for object in contents.objects {
        let reference = object.reference();
        report.problems.extend(unusable(&object).map(|problem| ManifestProblem {
            path: position.path.to_owned(),
            document: Some(position.document),
            line: Some(position.line),
            object: Some(reference.to_string()),
            what: format!("{}: {}", problem.field, problem.reason),
            remedy: "correct it",
        }));
        objects.push((reference.clone(), fingerprint(&object)));
        parsed(reference, object);
    }
    DocumentState { text: Some(text), objects, is_mistaken }
}

/// What in a well-formed object can't be programmed. The sync loop finds the
/// same, but does not know the file.
fn unusable(object: &Object) -> impl Iterator<Item = Problem> {
    Store::default().apply(Change::Apply(object.clone())).into_iter()
}

impl Format {
    fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|extension| extension == "json") { Format::Json } else { Format::Yaml }
    }
}

impl Stamp {
    /// `None` where the timestamps say nothing: the file can't be looked at, or
    /// is so young that a further change might leave them as they are.
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        let changed =
            u64::try_from(metadata.ctime()).ok().map(|secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs))?;
        if SystemTime::now().duration_since(changed).ok()? < TIMESTAMP_GRANULARITY {
            return None;
        }
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The files behind a path: itself, or those of the directory (not of its
/// subdirectories) that look like manifests, by name. Hidden files are left
/// out: editors put their own there.
fn list(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_manifest = path.extension().is_some_and(|found| EXTENSIONS.iter().any(|wanted| found == *wanted));
        // Symbolic links are followed: a mounted ConfigMap consists of them.
        if is_manifest && !is_hidden && fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_text(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| format!("not UTF-8 text: {error}"))
}

fn hash_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Tells a changed object from an unchanged one without holding it.
fn fingerprint(object: &Object) -> u64 {
    struct Writer(DefaultHasher);
    impl io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut writer = Writer(DefaultHasher::new());
    // These types have string keys only: their serialization can't fail.
    let _ = serde_json::to_writer(&mut writer, object);
    writer.0.finish()
}
