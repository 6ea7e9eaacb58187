// SPDX-License-Identifier: GPL-2.0-or-later
//
// A set of hosts, ids 1..64, in eight bytes: every volume has some, and of thousands of volumes the State is copied whenever it has
// changed. What it lacks of std::set is not needed; it is shown in JSON as std::set is, as a list.
#pragma once

#include "uapi/lockstep.h"

#include <nlohmann/json.hpp>

#include <bit>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

namespace lockstep {

class HostSet {
public:
	using value_type = uint8_t;
	class iterator {
	public:
		using iterator_category = std::forward_iterator_tag;
		using value_type = uint8_t;
		using difference_type = std::ptrdiff_t;
		using pointer = const uint8_t *;
		using reference = uint8_t;
		iterator() = default;
		explicit iterator(uint64_t left) : left_(left) {}
		uint8_t operator*() const { return uint8_t(std::countr_zero(left_) + 1); }
		iterator &operator++()
		{
			left_ &= left_ - 1;
			return *this;
		}
		iterator operator++(int)
		{
			iterator before = *this;
			++*this;
			return before;
		}
		bool operator==(const iterator &) const = default;

	private:
		uint64_t left_ = 0;    // those from here on
	};

	HostSet() = default;
	HostSet(std::initializer_list<uint8_t> hosts)
	{
		for (uint8_t h : hosts)
			insert(h);
	}
	bool contains(uint8_t host) const { return host >= 1 && host <= LKS_MAX_HOSTS && bits_ >> (host - 1) & 1; }
	std::pair<iterator, bool> insert(uint8_t host)    // throws if it is no id
	{
		if (host < 1 || host > LKS_MAX_HOSTS)
			throw std::out_of_range("no host has the id " + std::to_string(host));
		const bool fresh = !contains(host);
		bits_ |= 1ull << (host - 1);
		return {iterator(bits_ >> (host - 1) << (host - 1)), fresh};
	}
	size_t erase(uint8_t host)
	{
		const bool there = contains(host);
		if (there)
			bits_ &= ~(1ull << (host - 1));
		return there;
	}
	void clear() { bits_ = 0; }
	bool empty() const { return !bits_; }
	size_t size() const { return size_t(std::popcount(bits_)); }
	iterator begin() const { return iterator(bits_); }
	iterator end() const { return iterator(); }
	bool operator==(const HostSet &) const = default;

	friend void to_json(nlohmann::json &j, const HostSet &set)
	{
		j = nlohmann::json::array();
		for (uint8_t h : set)
			j.push_back(h);
	}
	friend void from_json(const nlohmann::json &j, HostSet &set)
	{
		set = {};
		for (const nlohmann::json &h : j)
			set.insert(h.get<uint8_t>());
	}

private:
	static_assert(LKS_MAX_HOSTS == 64);
	uint64_t bits_ = 0;    // bit 0: host 1
};

}    // namespace lockstep
