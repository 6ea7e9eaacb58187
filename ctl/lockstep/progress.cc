// SPDX-License-Identifier: GPL-2.0-or-later
#include "lockstep/progress.h"

#include <fmt/format.h>

#include <algorithm>

namespace lockstep::cli {

namespace {

constexpr size_t BAR = 30, LINE = 79;

}    // namespace

void Progress::show(double part, const std::string &rest)
{
	if (!context_.terminal)
		return;
	part = std::clamp(part, 0.0, 1.0);
	const auto full = size_t(part * double(BAR));
	std::string line = fmt::format("{} [{}{}] {:5.1f} %{}{}", title_, std::string(full, '#'), std::string(BAR - full, '.'), part * 100,
				       rest.empty() ? "" : ", ", rest);
	context_.out << '\r' << line.substr(0, LINE) << "\033[K" << std::flush;
	shown_ = true;
}

void Progress::end()
{
	if (shown_)
		context_.out << "\r\033[K" << std::flush;
	shown_ = false;
}

}    // namespace lockstep::cli
