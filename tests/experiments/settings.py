"""Which settings of a configuration the code of a program reads, found in its source.

Followed are sections by name: `settings = config.rl`, `config[section]`, arguments of calls between
modules of experiments/, loops over tuples of sections.
"""

import ast
from collections import defaultdict
from fnmatch import fnmatchcase
from functools import cache

from commands import ROOT

WHOLE = ("to_dict", "items", "values", "copy_and_resolve_references")


@cache
def modules():
    """Of each module of experiments/: its functions and classes, and what its names import."""
    found = {}
    for path in (ROOT / "experiments").glob("*.py"):
        tree, defined, imported = ast.parse(path.read_text()), {}, {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):  # METHODS = {...}: as a function
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {t.id: node for t in targets if isinstance(t, ast.Name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments"):
                module = node.module.partition(".")[2]
                for name in node.names:
                    key = (module, name.name) if module else (name.name, None)
                    imported[name.asname or name.name] = key
        found[path.stem] = defined, imported
    return found


@cache
def parts(node):
    """All nodes below one."""
    return list(ast.walk(node))


class Reader:
    """The settings that a program reads.

    Attributes:
      paths: patterns as `rl.steps` and `*.rows`.
    """

    def __init__(self, program):
        self.paths, self.seen = set(), set()
        self.given = defaultdict(set)  # (module, function, parameter): sections
        self.fields = {"config": {""}}  # attributes of dataclasses that hold sections
        self.aliases = {}  # config.pretrain = config.teacher
        self.changed = True
        while self.changed:  # what one function gives another may come after it was read
            self.changed, self.seen = False, set()
            self.visit(program, "main")

    def visit(self, module, name):
        """Read a function, and whatever it names."""
        node = modules().get(module, ({}, {}))[0].get(name)
        if node is None or (module, name) in self.seen:
            return
        self.seen.add((module, name))
        env = defaultdict(set)
        for part in parts(node):
            if isinstance(part, ast.arg):
                env[part.arg] |= self.given[module, name, part.arg]
                if part.arg == "config" and "ConfigDict" in ast.unparse(part.annotation or part):
                    env["config"].add("")
        for _ in range(2):
            for part in parts(node):
                if isinstance(part, ast.Assign):
                    self.bind(part.targets[0], part.value, env)
                elif isinstance(part, ast.For | ast.comprehension):
                    for each in getattr(part.iter, "elts", [part.iter]):
                        self.bind(part.target, each, env)
        for part in parts(node):
            self.read(part, env)
            if isinstance(part, ast.Call):
                self.give(module, part, env)
            target = self.resolve(module, part)
            if target:
                self.visit(*target)

    def resolve(self, module, node):
        """`(module, name)` of a function of experiments/ that an expression names."""
        defined, imported = modules()[module]
        if isinstance(node, ast.Name):
            return (module, node.id) if node.id in defined else imported.get(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of = imported.get(node.value.id, ("", ""))
            return (of[0], node.attr) if of[1] is None else None
        return None

    def values(self, node, env):
        """The sections, or the texts in quotes, that an expression may stand for."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return {f"'{node.value}"}
        if isinstance(node, ast.Name):
            return env.get(node.id, set())
        if isinstance(node, ast.Dict):  # its keys, where it is gone through
            return {f"'{key.value}" for key in node.keys if isinstance(key, ast.Constant)}
        if isinstance(node, ast.IfExp):
            return self.values(node.body, env) | self.values(node.orelse, env)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "get":
                owners = self.values(node.func.value, env)
                keys = {getattr(node.args[0], "value", "*")}
            elif node.func.attr == "deepcopy":
                return self.values(node.args[0], env)
            else:
                return self.values(node.func.value, env) if "copy" in node.func.attr else set()
        elif isinstance(node, ast.Attribute):
            owners, keys = self.values(node.value, env), {node.attr}
            if not owners and node.attr in self.fields:
                return self.fields[node.attr]
        elif isinstance(node, ast.Subscript):
            owners = self.values(node.value, env)
            keys = {v[1:] for v in self.values(node.slice, env) if v[:1] == "'"} or {"*"}
        else:
            return set()
        return {f"{o}.{k}".lstrip(".") for o in owners if o[:1] != "'" for k in keys}

    def bind(self, target, value, env):
        """An assignment, of several names at once too."""
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for name, each in zip(target.elts, value.elts):
                self.bind(name, each, env)
        elif isinstance(target, ast.Name):
            env[target.id] |= self.values(value, env)
        elif isinstance(target, ast.Attribute):
            for of in self.values(value, env):
                for to in self.values(target, env) if of[:1] != "'" else ():
                    self.aliases[of] = to

    def read(self, node, env):
        """Note what an expression reads."""
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Load):
            self.paths |= {v for v in self.values(node, env) if v}
        whole = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            whole = node.func.value if node.func.attr in WHOLE else None
        elif isinstance(node, ast.keyword) and node.arg is None:
            whole = node.value
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if key is None:
                    self.paths |= {f"{v}.*" for v in self.values(value, env) if v}
        if whole is not None:
            self.paths |= {f"{v}.*" for v in self.values(whole, env) if v}

    def give(self, module, call, env):
        """Hand arguments to the function that is called, or made a partial of."""
        function, arguments = call.func, call.args
        if isinstance(function, ast.Name) and function.id == "partial":
            function, *arguments = arguments
        target = self.resolve(module, function)
        node = target and modules().get(target[0], ({}, {}))[0].get(target[1])
        if isinstance(node, ast.ClassDef):
            names = [f.target.id for f in node.body if isinstance(f, ast.AnnAssign)]
        elif isinstance(node, ast.FunctionDef):
            names = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
        else:
            return
        pairs = [*zip(names, arguments), *((k.arg, k.value) for k in call.keywords if k.arg)]
        for name, value in pairs:
            found, key = self.values(value, env), (*target, name)
            if not found <= self.given[key]:
                self.given[key] |= found
                self.changed = True
            if isinstance(node, ast.ClassDef) and found:
                self.fields[name] = self.fields.get(name, set()) | found

    def reads(self, key):
        """Whether a setting is read, itself or with its section."""
        for of, to in self.aliases.items():
            if key.startswith(f"{of}.") and self.reads(key.replace(of, to, 1)):
                return True
        parts = key.split(".")
        return any(
            path not in ("*", "*.*") and fnmatchcase(".".join(parts[: path.count(".") + 1]), path)
            and (path.endswith(".*") or path.count(".") + 1 == len(parts))
            for path in self.paths
        )
