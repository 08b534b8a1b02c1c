//! A plan that is interrupted after each of its operations.

use super::*;

/// Another complete target that must not change.
fn bystander(lab: &Lab) -> Wanted {
    let mut spec = lab.spec(only(9));
    spec.id = "t-bystander".parse().unwrap();
    spec.iqn = Iqn::target(&lab.prefix, &lab.instance, &spec.id).unwrap();
    spec
}

/// Applies the first `n` operations from `old` (or nothing) to `new` (or nothing), for every `n`; then ensures or removes.
fn cut_everywhere(old: Option<&Access>, new: Option<&Access>) {
    let mut n = 0;
    loop {
        let mut whole = false;
        for finish in [true, false] {
            let lab = Lab::new();
            let beside = bystander(&lab);
            lab.ensure(&beside);
            let before = lab.everything();
            if let Some(old) = old {
                lab.ensure(&lab.spec(old.clone()));
            }
            let names = lab.names(&lab.id());
            let ops = match new {
                Some(new) => lab.plan(&lab.want(&lab.spec(new.clone()))),
                None => {
                    plan::take_down(&names.target(), &Have::of(&lab.tree, &names, lab.shown, false).unwrap())
                }
            };
            whole |= n >= ops.len();
            lab.apply(&ops[..n.min(ops.len())]);
            let listed = lab.tree.root().join(names.target()).is_dir();
            let rest = Have::of(&lab.tree, &names, lab.shown, false).unwrap();
            assert!(listed || rest.is_nothing(), "after {n} something is there that is not listed: {rest:?}");
            if finish {
                lab.ensure(&lab.spec(new.or(old).unwrap().clone()));
            }
            let rest = Have::of(&lab.tree, &names, lab.shown, false).unwrap();
            lab.apply(&plan::take_down(&names.target(), &rest));
            assert_eq!(lab.everything(), before, "after {n}, finished: {finish}");
            assert_eq!(lab.plan(&lab.want(&beside)), [], "the bystander is whole");
        }
        if whole {
            return;
        }
        n += 1;
    }
}

#[test]
fn an_ensure_is_completed_or_undone_wherever_it_was_cut() {
    cut_everywhere(None, Some(&chap(1, "TopSecret1234567")));
    cut_everywhere(None, Some(&Access::Shared));
}

#[test]
fn a_change_is_completed_or_undone_wherever_it_was_cut() {
    cut_everywhere(Some(&chap(1, "TopSecret1234567")), Some(&only(2)));
    cut_everywhere(Some(&only(2)), Some(&chap(1, "TopSecret1234567")));
    cut_everywhere(Some(&only(1)), Some(&Access::Shared));
}

#[test]
fn a_remove_is_undone_or_completed_wherever_it_was_cut() {
    cut_everywhere(Some(&chap(1, "TopSecret1234567")), None);
}

#[test]
fn an_operation_that_fails_ends_the_list_but_a_flush_does_not() {
    let lab = Lab::new();
    let missing = Op::Mkdir("nowhere/at/all".into());
    let after = Op::Mkdir("iscsi/after".into());
    lab.tree.apply(&[missing, after.clone()]).unwrap_err();
    assert!(!lab.tree.root().join("iscsi/after").exists());
    // A folder can be opened, and a path through a file cannot.
    let bad = Op::Flush(lab.dir.path().join("disk/below"));
    lab.tree.apply(&[bad, after]).unwrap_err();
    assert!(lab.tree.root().join("iscsi/after").exists());
}
