// Rows are sorted within their group; the page is whole without this.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.querySelector(".name").childNodes);
    head.querySelector(".name").append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
        rows.sort((a, b) => compare(a.cells[place], b.cells[place], down ? -1 : 1));
        body.append(...rows);
      }
    });
  });
}
// Numbers by what stands for them, an empty cell last in either direction.
function compare(a, b, sign) {
  const [x, y] = [a, b].map((cell) => cell.dataset.sort ?? "");
  if (x !== "" && y !== "") return sign * (Number(x) - Number(y));
  if (x !== "" || y !== "") return x === "" ? 1 : -1;
  return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
