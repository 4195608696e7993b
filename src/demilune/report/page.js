"use strict";
// What a page can do beyond being read: another theme, sorted and filtered tables, values under the pointer, examples
// one at a time. Without it everything is still there to read. It reads the page alone, and asks nobody for anything.
(() => {
  const all = (query, from = document) => [...from.querySelectorAll(query)];
  const root = document.documentElement;
  const live = document.getElementById("live");
  const make = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  root.classList.add("js");
  for (const tools of all(".tools, .thumbs, #theme")) tools.hidden = false;

  // --- light and dark ------------------------------------------------------------------------------------------------
  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const told = () => toggle.setAttribute("aria-pressed", String(dark()));
  try {
    const kept = localStorage.getItem("demilune-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* a page opened from a file may not be allowed to remember */ }
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("demilune-theme", root.dataset.theme); } catch { /* as above */ }
    told();
  });
  system.addEventListener("change", told);
  told();

  // --- tables --------------------------------------------------------------------------------------------------------
  const words = (cell) => cell.textContent.replace(/\s+/g, " ").trim();
  const key = (cell) => {
    if (!cell || words(cell) === "\u2013" || words(cell) === "") return null; // missing
    return "value" in cell.dataset ? Number(cell.dataset.value) : words(cell).toLowerCase();
  };
  const sort = (table, column, down) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // what is missing is always last
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  };
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = make("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const first = [...table.tBodies[0].rows].map((row) => key(row.cells[column])).find((one) => one !== null);
        const before = head.getAttribute("aria-sort");
        const down = before === "none" ? typeof first === "number" : before === "ascending";
        for (const one of heads) one.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, column, down);
        live.textContent = `sorted by ${words(button)}, ${down ? "descending" : "ascending"}`;
      });
    });
  }
  for (const input of all("input[data-filter]")) {
    const table = document.getElementById(input.dataset.filter);
    const count = input.closest(".tools").querySelector("output");
    const apply = () => {
      const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = [...table.tBodies[0].rows];
      for (const row of rows) row.hidden = !wanted.every((word) => words(row).toLowerCase().includes(word));
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = wanted.length ? `${shown} of ${rows.length} lines` : "";
    };
    input.addEventListener("input", apply);
    apply(); // a browser may have kept what was typed
  }

  // --- drawings: the cells of their tables, where they are drawn -----------------------------------------------------
  for (const figure of all("figure.drawing")) {
    const plot = figure.querySelector(".plot");
    const tables = all("table.values", figure).map((table) => ({
      title: words(table.caption),
      corner: words(table.tHead.rows[0].cells[0]),
      whole: table.dataset.read === "row",
      rows: [...table.tBodies[0].rows].map((row) => [...row.cells].slice(1).map((cell, column) => {
        const at = cell.dataset.at && cell.dataset.at.split(" ").map(Number);
        return at && { row: words(row.cells[0]), head: words(table.tHead.rows[0].cells[column + 1]), text: words(cell), at };
      })),
    }));
    const cells = tables.flatMap((table, t) => table.rows.flatMap((row, r) => row.flatMap((cell, c) => (cell ? [{ ...cell, t, r, c }] : []))));
    if (!cells.length) continue;
    plot.classList.add("live");
    plot.tabIndex = 0;
    const tip = make("div", "", "tip");
    tip.setAttribute("aria-hidden", "true");
    tip.hidden = true;
    plot.append(tip);
    let place = null;
    const hide = () => {
      tip.hidden = true;
      for (const ring of all(".ring", plot)) ring.remove();
    };
    const show = (here, aloud) => {
      hide();
      place = here;
      const table = tables[here.t];
      const same = ({ at }) => Math.hypot(at[0] - here.at[0], at[1] - here.at[1]) < 0.4;
      const shown = table.whole
        ? table.rows[here.r].filter(Boolean).sort((a, b) => a.at[1] - b.at[1])
        : cells.filter((one) => one.t === here.t && same(one));
      const title = table.whole ? `${table.corner} ${here.row}` : "";
      tip.replaceChildren(make("b", [title, table.title].filter(Boolean).join(" \u00b7 ")));
      for (const one of shown) {
        const line = make("span");
        line.append(make("span", table.whole ? one.head : `${one.row}, ${one.head}`), make("span", one.text));
        tip.append(line);
        const ring = make("span", "", "ring");
        ring.style.left = `${one.at[0]}%`;
        ring.style.top = `${one.at[1]}%`;
        plot.append(ring);
      }
      const [x, y] = here.at;
      tip.style.left = x < 50 ? `calc(${x}% + 14px)` : "auto";
      tip.style.right = x < 50 ? "auto" : `calc(${100 - x}% + 14px)`;
      tip.style.top = y < 50 ? `calc(${y}% + 10px)` : "auto";
      tip.style.bottom = y < 50 ? "auto" : `calc(${100 - y}% + 10px)`;
      tip.hidden = false;
      const edge = plot.getBoundingClientRect(), box = tip.getBoundingClientRect(); // a narrow drawing: never outside
      if (box.right > edge.right || box.left < edge.left) {
        tip.style.left = `${Math.max(0, Math.min(edge.width - box.width, (x / 100) * edge.width - box.width / 2))}px`;
        tip.style.right = "auto";
      }
      if (aloud) live.textContent = [...tip.children].map((line) => [...line.childNodes].map((one) => one.textContent).join(" ")).join("; ");
    };
    const point = (event) => {
      const edge = plot.getBoundingClientRect();
      const x = event.clientX - edge.left, y = event.clientY - edge.top;
      let best = null, least = Infinity;
      for (const one of cells) {
        const across = Math.abs((one.at[0] / 100) * edge.width - x), down = Math.abs((one.at[1] / 100) * edge.height - y);
        const far = tables[one.t].whole && tables[one.t].rows.length > 12 ? across + 0.3 * down : Math.hypot(across, down);
        if (far < least) [best, least] = [one, far];
      }
      if (least < 70) show(best, false);
      else hide();
    };
    plot.addEventListener("pointermove", point);
    plot.addEventListener("pointerdown", point);
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);
    plot.addEventListener("focus", () => {
      if (plot.matches(":focus-visible")) show(place || cells[0], true);
    });
    plot.addEventListener("keydown", (event) => {
      const now = place || cells[0];
      const find = (test, back) => (back ? cells.filter(test).at(-1) : cells.find(test));
      const table = tables[now.t];
      const moves = {
        ArrowRight: () => (table.whole ? find((one) => one.t === now.t && one.r > now.r) : find((one) => one.t === now.t && one.r === now.r && one.c > now.c)),
        ArrowLeft: () => (table.whole ? find((one) => one.t === now.t && one.r < now.r, true) : find((one) => one.t === now.t && one.r === now.r && one.c < now.c, true)),
        ArrowDown: () => (table.whole ? find((one) => one.t > now.t) : find((one) => (one.t === now.t && one.r > now.r && one.c === now.c) || one.t > now.t)),
        ArrowUp: () => (table.whole ? find((one) => one.t < now.t, true) : find((one) => (one.t === now.t && one.r < now.r && one.c === now.c) || one.t < now.t, true)),
        Home: () => find((one) => one.t === now.t),
        End: () => find((one) => one.t === now.t, true),
      };
      if (event.key === "Escape") return hide();
      if (!(event.key in moves)) return undefined;
      event.preventDefault();
      return show(moves[event.key]() || now, true);
    });
  }

  // --- examples, one at a time ---------------------------------------------------------------------------------------
  const explorer = document.getElementById("explorer");
  if (explorer) {
    const galleries = all(".gallery", explorer);
    const [model, attack] = all("select", explorer);
    const count = explorer.querySelector("output");
    const option = (select, text) => select.append(new Option(text, text));
    const broken = (specimen) => specimen.dataset.broken.split("\n").filter(Boolean);
    const pick = (gallery, specimen) => {
      const specimens = all(".specimen", gallery);
      specimens.forEach((one, i) => {
        one.hidden = one !== specimen;
        gallery.querySelector(".thumbs").children[i].setAttribute("aria-pressed", String(one === specimen));
      });
    };
    for (const gallery of galleries) {
      option(model, gallery.dataset.name);
      const thumbs = gallery.querySelector(".thumbs");
      for (const specimen of all(".specimen", gallery)) {
        const button = make("button");
        button.type = "button";
        const image = specimen.querySelector("img").cloneNode();
        image.alt = "";
        button.append(image, specimen.dataset.name);
        button.addEventListener("click", () => pick(gallery, specimen));
        thumbs.append(button);
      }
      thumbs.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        event.preventDefault();
        const open = all("button:not([hidden])", thumbs), at = open.indexOf(document.activeElement);
        const next = open[(at + step + open.length) % open.length];
        next.focus();
        next.click();
      });
    }
    const update = () => {
      const gallery = galleries[model.selectedIndex];
      for (const one of galleries) one.hidden = one !== gallery;
      const specimens = all(".specimen", gallery), thumbs = [...gallery.querySelector(".thumbs").children];
      const wanted = attack.value;
      const fits = specimens.map((one) => {
        if (attack.selectedIndex === 0) return true;
        return attack.selectedIndex === 1 ? !broken(one).length : broken(one).includes(wanted);
      });
      thumbs.forEach((thumb, i) => { thumb.hidden = !fits[i]; });
      pick(gallery, specimens[fits.indexOf(true)]);
      const shown = fits.filter(Boolean).length;
      count.textContent = shown ? `${shown} of ${specimens.length} images` : "none of the images that are shown";
    };
    const refill = () => {
      const gallery = galleries[model.selectedIndex], before = attack.value;
      const names = [...new Set(all(".views > li[data-attack]", gallery).map((one) => one.dataset.attack))];
      attack.replaceChildren();
      for (const name of ["any or none", "none", ...names]) option(attack, name);
      if ([...attack.options].some((one) => one.value === before)) attack.value = before;
      update();
    };
    model.addEventListener("change", refill);
    attack.addEventListener("change", update);
    refill();
  }
})();
