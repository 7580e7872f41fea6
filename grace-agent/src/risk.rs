//! How likely a file needs a repair soon, from the history of its repo. Pure: history in, ratings out.
//!
//! A logistic regression over a few facts that anybody can check, trained on the repo's own past: at earlier commits, was a
//! file repaired within the next `horizon` commits? Its scores are calibrated (Platt) on a later part of the history, and its
//! calibration error is measured on a still later one; windows of the three parts do not overlap. Where the history is too
//! short for that, a fixed prior rates, says so, and stays below [`PRIOR_MAX`].

use std::collections::BTreeSet;

/// No rating of the prior is higher: it has never been measured on this repo.
pub const PRIOR_MAX: f64 = 0.65;
/// Facts about a file.
const FACTS: usize = 8;
/// Commits that are "recent".
const RECENT: usize = 100;
/// The least history that a model is trained on: commits, and files repaired in each of the three parts.
const MIN_COMMITS: usize = 120;
const MIN_REPAIRED: [usize; 3] = [20, 10, 10];
/// Samples trained on at most.
const MAX_SAMPLES: usize = 60_000;
/// Ridge penalty: keeps weights finite where a fact tells all apart.
const RIDGE: f64 = 1.0;
/// Rounds of Newton's method.
const ROUNDS: usize = 25;

/// One commit; merges are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commit {
    /// Number of the author.
    pub author: u32,
    /// Its message says that it repairs something.
    pub repairs: bool,
    /// Numbers of the files that it changed.
    pub files: Vec<u32>,
}

/// What a repo went through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Oldest first.
    pub commits: Vec<Commit>,
    /// Bytes of each file now, by number; none: it is not there any more, or not rated.
    pub files: Vec<Option<u64>>,
}

/// What the rating of a file rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct Rating {
    /// Number of the file.
    pub file: usize,
    /// 0 to 1.
    pub risk: f64,
    /// What raises it, the heaviest first.
    pub reasons: Vec<String>,
}

/// What the ratings rest on.
#[derive(Debug, Clone, PartialEq)]
pub enum Basis {
    /// A model of this repo.
    Trained {
        /// Samples that it was trained on.
        samples: usize,
        /// Commits ahead that a rating is about.
        horizon: usize,
        /// Mean difference between what was said and what came, on history that the model has not seen.
        calibration_error: f64,
        /// How well it ranks, on the same: 0.5 is guessing, 1 is perfect.
        ranking: f64,
        /// Share of the files that were repaired, on the same.
        base_rate: f64,
    },
    /// The prior, and why.
    Prior(String),
}

impl std::fmt::Display for Basis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Trained { samples, horizon, calibration_error, ranking, base_rate } => write!(
                f,
                "a repair within the next {horizon} commits; model trained on {samples} samples of this repo, held-out \
                 calibration error {:.1} %, ranking (AUC) {ranking:.2}, base rate {:.1} %",
                calibration_error * 100.0,
                base_rate * 100.0
            ),
            Self::Prior(why) => write!(f, "a prior, not calibrated on this repo: {why}"),
        }
    }
}

/// Whether a commit's message says that it repairs something. Typos and formatting are not what breaks.
#[must_use]
pub fn says_repair(message: &str) -> bool {
    let subject: String = message.lines().next().unwrap_or_default().chars().take(200).collect();
    let subject = subject.to_lowercase();
    let words: Vec<&str> = subject.split(|c: char| !c.is_alphanumeric()).collect();
    let any = |list: &[&str]| words.iter().any(|word| list.contains(word));
    let repairs = [
        "fix",
        "fixes",
        "fixed",
        "fixing",
        "bug",
        "bugs",
        "bugfix",
        "hotfix",
        "repair",
        "repairs",
        "crash",
        "crashes",
        "regression",
        "regressions",
        "revert",
        "reverts",
        "deadlock",
        "leak",
        "overflow",
        "panic",
        "broken",
    ];
    any(&repairs)
        && !any(&[
            "typo",
            "typos",
            "format",
            "formatting",
            "lint",
            "clippy",
            "spelling",
            "whitespace",
            "docs",
        ])
}

/// Rates every file that is there now, the riskiest first.
#[must_use]
pub fn rate(history: &History) -> (Vec<Rating>, Basis) {
    let horizon = (history.commits.len() / 12).clamp(10, 60);
    let trained = train(history, horizon);
    let now = Facts::at(history, history.commits.len());
    let (model, basis) = match trained {
        Ok((model, basis)) => (model, basis),
        Err(why) => (Model::prior(), Basis::Prior(why)),
    };
    let cap = if matches!(basis, Basis::Prior(_)) { PRIOR_MAX } else { 1.0 };
    let mut out: Vec<Rating> = (0..history.files.len())
        .filter(|file| history.files.get(*file).copied().flatten().is_some())
        .filter_map(|file| {
            let facts = now.of(file)?;
            let risk = model.risk(&facts);
            let risk = if risk.is_finite() { risk.clamp(0.0, cap) } else { return None };
            Some(Rating { file, risk, reasons: model.reasons(&facts, &now, file) })
        })
        .collect();
    out.sort_by(|a, b| b.risk.total_cmp(&a.risk).then(a.file.cmp(&b.file)));
    (out, basis)
}

/// What is known of each file just before a commit.
struct Facts {
    /// How many commits there were.
    at: usize,
    files: Vec<Known>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    /// Positions of the commits that changed it, and of those that repaired it, oldest first.
    changes: Vec<usize>,
    repairs: Vec<usize>,
    authors: BTreeSet<u32>,
    /// Files changed along with it, summed over its changes.
    beside: usize,
    bytes: u64,
}

impl Facts {
    fn at(history: &History, at: usize) -> Self {
        let mut out = Self { at: 0, files: vec![Known::default(); history.files.len()] };
        for (known, bytes) in out.files.iter_mut().zip(&history.files) {
            known.bytes = bytes.unwrap_or(0);
        }
        out.advance(history, at);
        out
    }

    /// Takes in the commits before `at`.
    fn advance(&mut self, history: &History, at: usize) {
        for (position, commit) in history.commits.iter().enumerate().take(at).skip(self.at) {
            for file in &commit.files {
                let Some(known) = self.files.get_mut(*file as usize) else { continue };
                known.changes.push(position);
                if commit.repairs {
                    known.repairs.push(position);
                }
                known.authors.insert(commit.author);
                known.beside += commit.files.len().saturating_sub(1);
            }
        }
        self.at = self.at.max(at);
    }

    fn recent(&self, positions: &[usize]) -> usize {
        let from = self.at.saturating_sub(RECENT);
        positions.len() - positions.partition_point(|position| *position < from)
    }

    /// The facts of a file as numbers; none where it was not there yet.
    fn of(&self, file: usize) -> Option<[f64; FACTS]> {
        let known = self.files.get(file)?;
        let last = *known.changes.last()?;
        let first = *known.changes.first()?;
        let ln = |n: usize| (1.0 + n as f64).ln();
        Some([
            ln(self.recent(&known.changes)),
            ln(known.changes.len()),
            ln(self.recent(&known.repairs)),
            ln(known.repairs.len()),
            ln(known.authors.len()),
            -ln(self.at.saturating_sub(last)),
            -ln(self.at.saturating_sub(first)),
            // Sizes of the past are not read: the one of now stands for them, and the coupling for the rest.
            (1.0 + known.bytes as f64).ln() + 0.3 * ln(known.beside / known.changes.len().max(1)),
        ])
    }
}

/// Weights of standardized facts, and Platt's scaling of the score.
struct Model {
    mean: [f64; FACTS],
    spread: [f64; FACTS],
    weight: [f64; FACTS],
    bias: f64,
    scale: f64,
    shift: f64,
}

impl Model {
    /// What studies of many projects agree on: recent changes and earlier repairs tell most, size and authors some.
    fn prior() -> Self {
        Self {
            mean: [1.0, 1.5, 0.3, 0.6, 0.9, -3.5, -4.5, 9.0],
            spread: [1.0, 1.0, 0.6, 0.8, 0.6, 1.3, 1.0, 1.5],
            weight: [0.6, 0.2, 0.7, 0.5, 0.2, 0.3, 0.1, 0.3],
            bias: -2.2,
            scale: 1.0,
            shift: 0.0,
        }
    }

    fn standard(&self, facts: &[f64; FACTS]) -> [f64; FACTS] {
        std::array::from_fn(|i| (facts[i] - self.mean[i]) / self.spread[i])
    }

    fn score(&self, facts: &[f64; FACTS]) -> f64 {
        let standard = self.standard(facts);
        self.bias + standard.iter().zip(&self.weight).map(|(x, w)| x * w).sum::<f64>()
    }

    /// Goes `by` times `step`: the weights, then the bias.
    fn advance(&mut self, step: &[f64; FACTS + 1], by: f64) {
        for (weight, step) in self.weight.iter_mut().zip(step) {
            *weight += by * step;
        }
        self.bias += by * step[FACTS];
    }

    fn risk(&self, facts: &[f64; FACTS]) -> f64 {
        sigmoid(self.scale * self.score(facts) + self.shift)
    }

    fn reasons(&self, facts: &[f64; FACTS], now: &Facts, file: usize) -> Vec<String> {
        let Some(known) = now.files.get(file) else { return Vec::new() };
        let standard = self.standard(facts);
        let mut heavy: Vec<(f64, usize)> = (0..FACTS).map(|i| (standard[i] * self.weight[i], i)).collect();
        heavy.retain(|(weight, _)| *weight > 0.05);
        heavy.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let recent = RECENT.min(now.at);
        let since = now.at.saturating_sub(known.changes.last().copied().unwrap_or(0));
        let words = |i: usize| match i {
            0 => format!("changed by {} of the last {recent} commits", now.recent(&known.changes)),
            1 => format!("changed by {} commits in all", known.changes.len()),
            2 => format!("repaired by {} of the last {recent} commits", now.recent(&known.repairs)),
            3 => format!("repaired by {} commits in all", known.repairs.len()),
            4 => match known.authors.len() {
                1 => "one author".to_owned(),
                n => format!("{n} authors"),
            },
            5 => format!("last changed {since} commits ago"),
            6 => "younger than most files".to_owned(),
            _ => format!(
                "{} bytes, {:.1} other files changed with it on average",
                known.bytes,
                known.beside as f64 / known.changes.len().max(1) as f64
            ),
        };
        heavy.into_iter().take(4).map(|(_, i)| words(i)).collect()
    }
}

type Sample = ([f64; FACTS], bool);

/// The facts of all files at some commits, and whether each was repaired within the next `horizon`.
fn samples(history: &History, at: impl Iterator<Item = usize>, horizon: usize) -> Vec<Sample> {
    let mut out = Vec::new();
    let mut facts = Facts::at(history, 0);
    for at in at {
        facts.advance(history, at);
        let next = history.commits.iter().skip(at).take(horizon).filter(|commit| commit.repairs);
        let repaired: BTreeSet<u32> = next.flat_map(|commit| commit.files.iter().copied()).collect();
        for file in 0..history.files.len() {
            if history.files.get(file).copied().flatten().is_some()
                && let Some(facts) = facts.of(file)
            {
                out.push((facts, u32::try_from(file).is_ok_and(|file| repaired.contains(&file))));
            }
        }
    }
    let step = out.len().div_ceil(MAX_SAMPLES).max(1);
    out.into_iter().step_by(step).collect()
}

fn train(history: &History, horizon: usize) -> Result<(Model, Basis), String> {
    let commits = history.commits.len();
    if commits < MIN_COMMITS {
        return Err(format!("{commits} commits are too few, {MIN_COMMITS} are needed"));
    }
    // Three parts, each a horizon away from the next, so that no outcome is in two of them.
    let usable = commits - horizon;
    let (one, two) = (usable / 2, usable * 3 / 4);
    let stride = (horizon / 2).max(1);
    let parts = [
        samples(history, (commits / 10..one.saturating_sub(horizon)).step_by(stride), horizon),
        samples(history, (one..two.saturating_sub(horizon)).step_by(stride), horizon),
        samples(history, (two..usable + 1).step_by(stride), horizon),
    ];
    for (part, (samples, least)) in ["early", "middle", "late"].iter().zip(parts.iter().zip(MIN_REPAIRED)) {
        let repaired = samples.iter().filter(|(_, repaired)| *repaired).count();
        if repaired < least || repaired == samples.len() {
            return Err(format!(
                "{repaired} repaired of {} files in the {part} part of {commits} commits tell too little, {least} are needed",
                samples.len()
            ));
        }
    }
    let [early, middle, late] = parts;
    let mut model = fit(&early).ok_or("the training found no finite weights")?;
    (model.scale, model.shift) = platt(&model, &middle).ok_or("the calibration found no finite scale")?;
    if model.scale <= 0.0 {
        return Err("what was learned from early history does not hold for later history".to_owned());
    }
    let rated: Vec<(f64, bool)> =
        late.iter().map(|(facts, repaired)| (model.risk(facts), *repaired)).collect();
    let basis = Basis::Trained {
        samples: early.len(),
        horizon,
        calibration_error: calibration_error(&rated),
        ranking: ranking(&rated),
        base_rate: rated.iter().filter(|(_, repaired)| *repaired).count() as f64 / rated.len().max(1) as f64,
    };
    Ok((model, basis))
}

fn fit(samples: &[Sample]) -> Option<Model> {
    let n = samples.len() as f64;
    let mean: [f64; FACTS] = std::array::from_fn(|i| samples.iter().map(|(x, _)| x[i]).sum::<f64>() / n);
    let spread: [f64; FACTS] = std::array::from_fn(|i| {
        let variance = samples.iter().map(|(x, _)| (x[i] - mean[i]).powi(2)).sum::<f64>() / n;
        // A fact that is the same for all tells nothing, whatever its weight.
        if variance > 1e-12 { variance.sqrt() } else { 1.0 }
    });
    let mut model = Model { mean, spread, weight: [0.0; FACTS], bias: 0.0, scale: 1.0, shift: 0.0 };
    const N: usize = FACTS + 1;
    for _ in 0..ROUNDS {
        let mut gradient = [0.0; N];
        let mut hessian = [[0.0; N]; N];
        for (facts, repaired) in samples {
            let standard = model.standard(facts);
            let row: [f64; N] = std::array::from_fn(|i| if i < FACTS { standard[i] } else { 1.0 });
            let p = sigmoid(model.score(facts));
            let error = f64::from(u8::from(*repaired)) - p;
            let curve = (p * (1.0 - p)).max(1e-9);
            for i in 0..N {
                gradient[i] += error * row[i];
                for j in 0..=i {
                    hessian[i][j] += curve * row[i] * row[j];
                }
            }
        }
        for i in 0..FACTS {
            gradient[i] -= RIDGE * model.weight[i];
            hessian[i][i] += RIDGE;
        }
        hessian[FACTS][FACTS] += 1e-6;
        let step = solve(hessian, gradient)?;
        let loss = |scale: f64| {
            let mut tried = Model { weight: model.weight, bias: model.bias, ..Model::prior() };
            (tried.mean, tried.spread) = (model.mean, model.spread);
            tried.advance(&step, scale);
            let ridge: f64 = tried.weight.iter().map(|w| w * w).sum::<f64>() * RIDGE / 2.0;
            let surprise =
                |(facts, repaired): &Sample| surprise(tried.score(facts), f64::from(u8::from(*repaired)));
            ridge + samples.iter().map(surprise).sum::<f64>()
        };
        let scale = damped(loss);
        model.advance(&step, scale);
        if scale == 0.0 || step.iter().all(|s| s.abs() < 1e-8) {
            break;
        }
    }
    let finite = model.weight.iter().chain([&model.bias]).all(|w| w.is_finite() && w.abs() < 1e3);
    finite.then_some(model)
}

/// Scale and shift of the score under which it says how often repairs came (Platt 1999, with his smoothed targets).
fn platt(model: &Model, samples: &[Sample]) -> Option<(f64, f64)> {
    let yes = samples.iter().filter(|(_, repaired)| *repaired).count() as f64;
    let no = samples.len() as f64 - yes;
    let (high, low) = ((yes + 1.0) / (yes + 2.0), 1.0 / (no + 2.0));
    let scored: Vec<(f64, f64)> = samples
        .iter()
        .map(|(facts, repaired)| (model.score(facts), if *repaired { high } else { low }))
        .collect();
    let (mut scale, mut shift) = (1.0, 0.0);
    for _ in 0..ROUNDS {
        let (mut g, mut h) = ([0.0; 2], [[0.0; 2]; 2]);
        for (score, target) in &scored {
            let p = sigmoid(scale * score + shift);
            let (error, curve) = (target - p, (p * (1.0 - p)).max(1e-9));
            g[0] += error * score;
            g[1] += error;
            h[0][0] += curve * score * score;
            h[1][0] += curve * score;
            h[1][1] += curve;
        }
        h[0][0] += 1e-6;
        h[1][1] += 1e-6;
        let step = solve(h, g)?;
        let by = damped(|by| {
            let (scale, shift) = (scale + by * step[0], shift + by * step[1]);
            scored.iter().map(|(score, target)| surprise(scale * score + shift, *target)).sum()
        });
        scale += by * step[0];
        shift += by * step[1];
        if by == 0.0 || step.iter().all(|s| s.abs() < 1e-8) {
            break;
        }
    }
    (scale.is_finite() && shift.is_finite()).then_some((scale, shift))
}

/// Solves a symmetric positive system of which the lower half is given (Cholesky).
fn solve<const N: usize>(mut a: [[f64; N]; N], mut b: [f64; N]) -> Option<[f64; N]> {
    for i in 0..N {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| a[i][k] * a[j][k]).sum();
            let rest = a[i][j] - dot;
            if i == j {
                if rest <= 0.0 || !rest.is_finite() {
                    return None;
                }
                a[i][i] = rest.sqrt();
            } else {
                a[i][j] = rest / a[j][j];
            }
        }
    }
    for i in 0..N {
        let dot: f64 = (0..i).map(|k| a[i][k] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i][i];
    }
    for i in (0..N).rev() {
        let dot: f64 = (i + 1..N).map(|k| a[k][i] * b[k]).sum();
        b[i] = (b[i] - dot) / a[i][i];
    }
    Some(b)
}

/// How much of a step of Newton's method makes `loss` smaller: all of it, or a half as often as it takes; 0: none does.
/// Where the curve is flat the whole step may lead far away.
fn damped(loss: impl Fn(f64) -> f64) -> f64 {
    let now = loss(0.0);
    (0..20).map(|halves| 0.5_f64.powi(halves)).find(|by| loss(*by) < now).unwrap_or(0.0)
}

/// The cross entropy of a score against what came: 0 for a sure score that is right.
fn surprise(score: f64, came: f64) -> f64 {
    // ln(1 + e^x) without overflow.
    score.max(0.0) + (-score.abs()).exp().ln_1p() - came * score
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x.clamp(-40.0, 40.0)).exp())
}

/// Expected calibration error over about ten bins of equal size.
fn calibration_error(rated: &[(f64, bool)]) -> f64 {
    let mut sorted = rated.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let size = sorted.len().div_ceil(10).max(1);
    let (mut total, mut said, mut came, mut count) = (0.0, 0.0, 0.0, 0);
    // What was rated the same stays together: its order says nothing.
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        said += same.iter().map(|(p, _)| p).sum::<f64>();
        came += same.iter().filter(|(_, repaired)| *repaired).count() as f64;
        count += same.len();
        if count >= size {
            total += f64::abs(said - came);
            (said, came, count) = (0.0, 0.0, 0);
        }
    }
    total += f64::abs(said - came);
    total / sorted.len().max(1) as f64
}

/// Area under the ROC curve: how often a repaired file is rated above one that was not; equal ratings count half.
fn ranking(rated: &[(f64, bool)]) -> f64 {
    let mut sorted = rated.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut sum, mut yes) = (0.0, 0.0, 0.0);
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        let repaired = same.iter().filter(|(_, r)| *r).count() as f64;
        let not = same.len() as f64 - repaired;
        sum += repaired * (below + not / 2.0);
        below += not;
        yes += repaired;
    }
    if yes == 0.0 || below == 0.0 { 0.5 } else { sum / (yes * below) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files 0 to 9 are repaired again and again, the other hundred are changed now and then.
    fn history(commits: usize) -> History {
        // A fixed walk: the same history every time.
        let mut state = 88_172_645_463_325_252_u64;
        let mut next = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % n as u64).unwrap()
        };
        let mut out = History { commits: Vec::new(), files: vec![Some(2_000); 110] };
        out.commits.push(Commit { author: 0, repairs: false, files: (0..110).collect() });
        while out.commits.len() < commits {
            let repairs = next(3) == 0;
            let file = if repairs && next(10) > 0 { next(10) } else { 10 + next(100) };
            let author = u32::try_from(next(5)).unwrap();
            out.commits.push(Commit { author, repairs, files: vec![u32::try_from(file).unwrap()] });
        }
        out
    }

    #[test]
    fn what_was_repaired_again_and_again_is_rated_high_and_calibrated() {
        let (ratings, basis) = rate(&history(900));
        let Basis::Trained { calibration_error, ranking, .. } = &basis else { panic!("{basis}") };
        assert!(*calibration_error < 0.035, "{basis}");
        assert!(*ranking > 0.9, "{basis}");
        let top: Vec<usize> = ratings.iter().take(10).map(|r| r.file).collect();
        assert!(top.iter().all(|file| *file < 10), "{top:?}");
        assert!(ratings[0].risk > 0.7, "{:?}", ratings[0]);
        assert!(ratings[50].risk < 0.3, "{:?}", ratings[50]);
        assert!(ratings[0].reasons.iter().any(|r| r.contains("repaired")), "{:?}", ratings[0]);
    }

    #[test]
    fn history_that_tells_nothing_is_rated_by_the_prior_which_stays_below_its_limit() {
        for (name, history) in [
            ("empty", History::default()),
            ("short", history(100)),
            ("no repairs", {
                let mut history = history(900);
                history.commits.iter_mut().for_each(|c| c.repairs = false);
                history
            }),
            ("all repairs", {
                let mut history = history(900);
                history.commits.iter_mut().for_each(|c| c.repairs = true);
                history.files.truncate(1);
                history
            }),
            (
                "no such file",
                History {
                    commits: vec![Commit { files: vec![7], ..Commit::default() }; 900],
                    files: vec![Some(1)],
                },
            ),
        ] {
            let (ratings, basis) = rate(&history);
            assert!(matches!(basis, Basis::Prior(_)), "{name}: {basis}");
            assert!(ratings.iter().all(|r| (0.0..=PRIOR_MAX).contains(&r.risk)), "{name}");
        }
    }

    #[test]
    fn a_score_that_is_too_sure_is_scaled_to_what_came() {
        let mut model = Model {
            mean: [0.0; FACTS],
            spread: [1.0; FACTS],
            weight: [0.0; FACTS],
            bias: 0.0,
            scale: 1.0,
            shift: 0.0,
        };
        model.weight[0] = 1.0;
        let mut samples = Vec::new();
        for step in -8..=8_i32 {
            let x = f64::from(step) / 2.0;
            let share = sigmoid(0.3 * x - 1.0);
            for n in 0..200 {
                samples.push((
                    std::array::from_fn(|i| if i == 0 { x } else { 0.0 }),
                    f64::from(n) < share * 200.0,
                ));
            }
        }
        let rated = |model: &Model| -> Vec<(f64, bool)> {
            samples.iter().map(|(facts, repaired)| (model.risk(facts), *repaired)).collect()
        };
        assert!(calibration_error(&rated(&model)) > 0.1);
        (model.scale, model.shift) = platt(&model, &samples).unwrap();
        assert!(
            (model.scale - 0.3).abs() < 0.02 && (model.shift + 1.0).abs() < 0.02,
            "{} {}",
            model.scale,
            model.shift
        );
        assert!(calibration_error(&rated(&model)) < 0.02);
    }

    #[test]
    fn the_same_history_is_rated_the_same() {
        assert_eq!(rate(&history(400)), rate(&history(400)));
    }

    #[test]
    fn messages_say_what_repairs() {
        for (message, want) in [
            ("Fix crash on empty input", true),
            ("agent: a bug in the reader", true),
            ("fix: #12", true),
            ("Revert \"x\"", true),
            ("fix typo in README", false),
            ("add prefix matching", false),
            ("feature\n\nfixes nothing", false),
            ("fixture for tests", false),
            ("", false),
        ] {
            assert_eq!(says_repair(message), want, "{message:?}");
        }
    }

    #[test]
    fn measures_are_what_they_say() {
        assert_eq!(ranking(&[(0.1, false), (0.9, true)]), 1.0);
        assert_eq!(ranking(&[(0.5, false), (0.5, true)]), 0.5);
        assert_eq!(ranking(&[]), 0.5);
        assert_eq!(calibration_error(&[(1.0, true), (0.0, false)]), 0.0);
        assert_eq!(calibration_error(&[(1.0, false)]), 1.0);
        let solved = solve([[4.0, 0.0], [2.0, 3.0]], [8.0, 7.0]).unwrap();
        assert!((solved[0] - 1.25).abs() < 1e-12 && (solved[1] - 1.5).abs() < 1e-12, "{solved:?}");
        assert_eq!(solve([[0.0]], [1.0]), None);
    }
}
