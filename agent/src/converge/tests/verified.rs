//! Runs over so many files that the engine looks at them first.

use super::paths::link;
use super::*;

const N_FILES: usize = 40;

fn files(directory: &str) -> Vec<Resource> {
    (0..N_FILES).map(|i| a_file(&format!("{directory}/f{i}"), &format!("content {i}\n"))).collect()
}

fn changed(report: &RunReport) -> Vec<String> {
    let others = report.resources.iter().filter(|resource| resource.outcome != Outcome::Unchanged);
    others.map(|resource| resource.resource.to_string()).collect()
}

#[test]
fn only_what_differs_is_put_right_and_all_of_it() {
    let mut world = World::new();
    let desired = desired(files("/d"));
    assert_eq!(changed(&world.converge(&desired)).len(), N_FILES);
    let inode = |world: &World, i: usize| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(world.path(&format!("/d/f{i}"))).unwrap().ino()
    };
    let before: Vec<u64> = (0..N_FILES).map(|i| inode(&world, i)).collect();
    assert_eq!(changed(&world.converge(&desired)), Vec::<String>::new());

    // The same length, so only the content tells; the last one, so that an earlier step has been applied by then.
    world.write("/d/f3", "CONTENT 3\n");
    std::fs::remove_file(world.path("/d/f39")).unwrap();
    let report = world.converge(&desired);
    assert_eq!(changed(&report), ["file[/d/f3]", "file[/d/f39]"]);
    assert!(report.converged());
    assert_eq!((world.read("/d/f3"), world.read("/d/f39")), ("content 3\n".to_owned(), "content 39\n".to_owned()));
    let touched: Vec<usize> = (0..N_FILES).filter(|i| inode(&world, *i) != before[*i]).collect();
    assert_eq!(touched, [3, 39]);
}

#[test]
fn what_a_step_led_elsewhere_is_looked_at_again() {
    let mut world = World::new();
    let mut resources = vec![a_symlink("/link", "new")];
    resources.extend(files("/link").into_iter().map(|file| file.requires(Kind::Symlink, "/link")));
    let desired = desired(resources);
    std::fs::create_dir(world.path("/old")).unwrap();
    std::fs::create_dir(world.path("/new")).unwrap();
    assert!(world.converge(&desired).converged());
    assert!(world.path("/new/f39").exists());
    // Everything is in sync beneath the old directory, to which the link leads when the run begins.
    std::fs::remove_dir(world.path("/old")).unwrap();
    std::fs::rename(world.path("/new"), world.path("/old")).unwrap();
    std::fs::create_dir(world.path("/new")).unwrap();
    std::fs::remove_file(world.path("/link")).unwrap();
    link(&world, "/link", "old");
    assert_eq!(world.read("/link/f0"), "content 0\n");

    let report = world.converge(&desired);
    assert_eq!(changed(&report).len(), N_FILES + 1);
    assert_eq!(std::fs::read_link(world.path("/link")).unwrap(), Path::new("new"));
    assert_eq!(world.read("/new/f39"), "content 39\n");
}

#[test]
fn an_owner_that_the_run_makes_first_counts_from_then_on() {
    let mut world = World::new();
    let mut resources = vec![a_group("app", Some(4321))];
    resources.extend(files("/d").into_iter().map(|mut file| {
        if let Desired::File(file::Desired { ensure: Ensure::Present(spec), .. }) = &mut file.desired {
            std::sync::Arc::make_mut(&mut spec.ownership).group = Principal::Name("app".to_owned());
        }
        file.requires(Kind::Group, "app")
    }));
    let desired = desired(resources);
    // Nobody has the group yet, so nothing can be in sync, whatever the files look like.
    for i in 0..N_FILES {
        world.write(&format!("/d/f{i}"), &format!("content {i}\n"));
    }
    let report = world.converge(&desired);
    let verdicts: Vec<String> = outcomes(&report);
    assert_eq!(verdicts[0], "changed group[app]");
    assert!(verdicts[1..].iter().all(|verdict| !verdict.starts_with("unchanged")), "{verdicts:?}");
}

#[test]
fn a_run_over_many_named_files_puts_right_what_differs_and_what_it_requires() {
    let mut world = World::new();
    let mut resources = vec![a_directory("/d"), a_file("/free", "x\n")];
    resources.extend(files("/d").into_iter().map(|file| file.requires(Kind::Directory, "/d")));
    let desired = desired(resources);
    assert!(world.converge(&desired).converged());
    world.write("/d/f7", "evil\n");
    world.write("/free", "evil\n");
    let scope = (0..N_FILES).map(|i| ResourceId::new(Kind::File, format!("/d/f{i}"))).collect();
    let report = world.converge_with(&Request { scope: Scope::Only(scope), ..everything(&desired) });
    assert_eq!(changed(&report), ["file[/d/f7]"]);
    // The named ones, and what the one that differs requires.
    assert_eq!(report.resources.len(), N_FILES + 1);
    assert_eq!((world.read("/d/f7"), world.read("/free")), ("content 7\n".to_owned(), "evil\n".to_owned()));
}
