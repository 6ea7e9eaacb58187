// SPDX-License-Identifier: GPL-2.0-or-later
//
// See table.h.
#include "lib/table.h"

#include <algorithm>

namespace lockstep {

std::string Table::text() const
{
	std::vector<size_t> widths;
	for (const auto &row : rows_) {
		widths.resize(std::max(widths.size(), row.size()));
		for (size_t i = 0; i < row.size(); i++)
			widths[i] = std::max(widths[i], row[i].size());
	}
	std::string text;
	for (const auto &row : rows_) {
		std::string line;
		for (size_t i = 0; i < row.size(); i++) {
			std::string pad(widths[i] - row[i].size(), ' ');
			bool right = std::find(right_.begin(), right_.end(), i) != right_.end();
			line += (i ? "  " : "") + (right ? pad + row[i] : row[i] + pad);
		}
		line.erase(line.find_last_not_of(' ') + 1);
		text += line + "\n";
	}
	return text;
}

}    // namespace lockstep
